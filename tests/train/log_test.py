"""Files are whole or absent; rows end where a restart begins."""

import errno
import io
import json

import pytest

from peft_jax.train import log


def test_write_replaces_all_or_nothing(tmp_path, monkeypatch):
  path = tmp_path / "result.json"
  log.write(path, "first")

  def full(handle):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(log.os, "fsync", full)
  with pytest.raises(OSError, match="No space left"):
    log.write(path, "second")
  assert path.read_text() == "first"
  assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_keep_rows_drops_later_and_incomplete_ones(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert log.keep_rows(path, 5) == [] and not path.exists()
  for step in (2, 4, 4, 6):
    log.append(path, {"step": step, "loss": 0.1 * step})
  with path.open("a") as file:
    file.write('{"step": 7, "lo')
  assert [row["step"] for row in log.keep_rows(path, 4)] == [2, 4, 4]
  log.append(path, {"step": 6, "loss": 1.0})
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 4, 6]


def test_rows_hold_finite_numbers_only(tmp_path):
  with pytest.raises(ValueError):
    log.append(tmp_path / "metrics.jsonl", {"step": 1, "loss": float("nan")})


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_overwrites_one_line_on_a_terminal_and_prints_lines_elsewhere():
  live = Terminal()
  progress = log.Progress(100, 32, 0, live)
  progress.show(10, 0.1, 2.5)
  progress.show(20, 0.2, 2.0)
  progress.say("kept")
  lines = live.getvalue().split("\r")
  assert lines[1].startswith("step 10/100  epoch 0.1  loss 2.5000") and "ETA 0:" in lines[1]
  assert lines[-1] == "kept\n" and live.getvalue().count("\n") == 1

  plain = io.StringIO()
  progress = log.Progress(100, 32, 0, plain)
  for step in (10, 20, 100):
    progress.show(step, 1.0, 2.0)
  assert [line.split()[1] for line in plain.getvalue().splitlines()] == ["10/100", "100/100"]


def test_a_bar_is_redrawn_on_a_terminal_and_a_line_now_and_then_elsewhere(monkeypatch):
  clock = iter([0, 30, *range(32, 80, 2)])  # the first part takes 30 s, the others 2 s each
  monkeypatch.setattr(log.time, "monotonic", lambda: next(clock))
  live = Terminal()
  bar = log.Bar("choosing: batch", 24, live)
  for done in range(1, 25):
    bar.show(done)
  first, *lines = live.getvalue().split("\r")
  assert first == "" and len(lines) == 24 and live.getvalue().count("\n") == 1
  assert lines[0] == f"[#{'.' * 23}] choosing: batch 1/24  30 s"
  assert lines[11] == f"[{'#' * 12}{'.' * 12}] choosing: batch 12/24  52 s  ETA 0:00:24"
  assert lines[-1].rstrip() == f"[{'#' * 24}] choosing: batch 24/24  76 s"
  assert lines[-1].endswith("\n") and len(lines[-1]) > len(lines[-2])  # no rest of a longer line

  monkeypatch.setattr(log.time, "monotonic", lambda: 0)
  plain = io.StringIO()
  bar = log.Bar("choosing: batch", 24, plain)
  for done in range(1, 25):
    bar.show(done)
  bar = log.Bar("choosing: image", 800, plain)
  for done in range(32, 801, 32):  # 32 at a time
    bar.show(done)
  assert [line.split()[2] for line in plain.getvalue().splitlines()] == [
    "1/24", "10/24", "20/24", "24/24", "32/800", "320/800", "640/800", "800/800"]


def test_board_writes_numbers_and_does_nothing_when_unwanted(tmp_path):
  log.Board(tmp_path / "off", False, 0).add({"step": 1, "loss": 2.0})
  assert not (tmp_path / "off").exists()
  tensorboard = pytest.importorskip("tensorboardX")
  board = log.Board(tmp_path / "on", True, 3)
  board.add({"step": 4, "epoch": 0.5, "loss": 2.0, "lr/head": 0.25})
  (file,) = (tmp_path / "on").iterdir()
  content, events = file.read_bytes(), []  # length, checksum, event, checksum
  while content:
    size = int.from_bytes(content[:8], "little")
    events.append(tensorboard.proto.event_pb2.Event.FromString(content[12 : 12 + size]))
    content = content[16 + size :]
  board.close()
  assert [event.step for event in events] == [0, 4, 4]
  assert events[1].session_log.status == 1
  assert {v.tag: v.simple_value for v in events[2].summary.value} == {"loss": 2, "lr/head": 0.25}
