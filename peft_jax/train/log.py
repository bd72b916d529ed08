"""What a run writes beside its checkpoints, and what it shows while it runs.

metrics.jsonl is a function of (config, seed): no row holds a time. progress.jsonl holds the
times. Files are replaced whole or appended to and forced to disk, so that a killed run leaves at
worst one incomplete last line, which `keep_rows` drops.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time

from etils import epath

from peft_jax import files


def write(path, text):
  """Replaces the file at `path` by `text` (str or bytes): all of it, or nothing on an error."""
  with files.replacing(path) as file:
    file.write(text if isinstance(text, bytes) else text.encode())


def write_json(path, value):
  write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append(path, row):
  """Adds one json line to the file at `path` and forces it to disk."""
  with epath.Path(path).open("a") as file:
    file.write(json.dumps(row, allow_nan=False) + "\n")
    file.flush()
  files.to_disk(path)


def rows(path):
  """The rows of a json-lines file; an incomplete line ends them. [] when there is no file."""
  path = epath.Path(path)
  found = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      found.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return found


def keep_rows(path, step):
  """Drops the rows of steps after `step`: a restart will write them again. Returns the rest."""
  kept = [row for row in rows(path) if row["step"] <= step]
  if epath.Path(path).exists():
    write(path, "".join(json.dumps(row) + "\n" for row in kept))
  return kept


class Progress:
  """One line that follows the run: overwritten on a terminal, now and then elsewhere.

  total: steps of the run; batch_size: images of one step; first: the step it starts from.
  """

  def __init__(self, total, batch_size, first, stream=None):
    self.total, self.batch_size, self.first = total, batch_size, first
    self.stream = stream or sys.stdout
    self.live = self.stream.isatty()
    self.begin = time.monotonic()
    self.idle = 0.0  # seconds since then that belong to evaluation
    self.shown, self.width = float("-inf"), 0

  def start(self, step):
    """Takes `step` as the first one timed: the one before it was compilation."""
    self.first, self.begin, self.idle = step, time.monotonic(), 0.0

  @contextlib.contextmanager
  def pause(self):
    """Leaves what happens inside out of the speed."""
    begin = time.monotonic()
    yield
    self.idle += time.monotonic() - begin

  def rate(self, step):
    """Training images per second since the start, evaluations excluded."""
    seconds = time.monotonic() - self.begin - self.idle
    return (step - self.first) * self.batch_size / max(seconds, 1e-3)

  def show(self, step, epoch, loss):
    rate = self.rate(step)
    line = f"step {step}/{self.total}  epoch {epoch:.1f}  loss {loss:.4f}"
    if rate:
      left = (self.total - step) * self.batch_size / rate
      line += f"  {rate:.1f} images/s  ETA {_clock(left)}"
    if self.live:
      self.stream.write("\r" + line.ljust(self.width))
      self.stream.flush()
      self.width = len(line)
    elif time.monotonic() - self.shown > 10 or step == self.total:
      self.shown = time.monotonic()
      print(line, file=self.stream, flush=True)

  def say(self, sentence):
    """A line of its own that stays."""
    if self.live and self.width:
      self.stream.write("\r" + " " * self.width + "\r")
      self.width = 0
    print(sentence, file=self.stream, flush=True)


class Bar:
  """Work of a known number of parts: a bar redrawn on a terminal, a line now and then elsewhere.

  what: such as "choosing by contrast: batch"; total: parts, at least 1.
  """

  WIDTH = 24

  def __init__(self, what, total, stream=None):
    self.what, self.total, self.stream = what, total, stream or sys.stdout
    self.live = self.stream.isatty()
    self.begin = time.monotonic()
    self.first, self.timed = None, 0  # the time of the first part is that of compiling, too
    self.calls, self.width = 0, 0

  def show(self, done):
    """After part `done` of the total, 1 or more."""
    now, self.calls = time.monotonic(), self.calls + 1
    line = f"{self.what} {done}/{self.total}  {now - self.begin:.0f} s"
    if self.first is None:
      self.first, self.timed = now, done
    elif done < self.total and done > self.timed:
      each = (now - self.first) / (done - self.timed)
      line += f"  ETA {_clock((self.total - done) * each)}"
    if self.live:
      full = self.WIDTH * done // self.total
      line = f"[{'#' * full}{'.' * (self.WIDTH - full)}] {line}"
      self.stream.write("\r" + line.ljust(self.width) + "\n" * (done == self.total))
      self.stream.flush()
      self.width = len(line)
    elif self.calls == 1 or self.calls % 10 == 0 or done == self.total:
      print(line, file=self.stream, flush=True)


def _clock(seconds):
  minutes, seconds = divmod(round(seconds), 60)
  return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Board:
  """TensorBoard events under `folder`; does nothing where tensorboardX is not installed.

  first: step a restarted run goes on from; TensorBoard then hides later events of the run before.
  Events are written at once, without tensorboardX's own thread, so that errors surface here.
  """

  def __init__(self, folder, wanted, first):
    self.writer = None
    if not wanted:
      return
    try:
      from tensorboardX import event_file_writer, proto
    except ImportError:
      return
    self.event, self.summary = proto.event_pb2, proto.summary_pb2.Summary
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self.writer = event_file_writer.EventsWriter(os.fspath(folder / "events"))
    if first:
      restart = self.event.SessionLog(status=self.event.SessionLog.START)
      self._write(step=first + 1, session_log=restart)

  def add(self, row):
    """Every number of `row` as a curve of that name, at row["step"]."""
    values = [
      self.summary.Value(tag=name, simple_value=value)
      for name, value in row.items()
      if self.writer and name not in ("step", "epoch")
    ]
    if values:
      self._write(step=row["step"], summary=self.summary(value=values))

  def _write(self, **fields):
    self.writer.write_event(self.event.Event(wall_time=time.time(), **fields))
    self.writer.flush()

  def close(self):
    if self.writer:
      self.writer.close()
