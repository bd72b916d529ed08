"""train.py from the command line: exit codes, one-sentence errors, and kills at any moment."""

import errno
import importlib.util
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import pytest

from peft_jax import models
from peft_jax.train import loop

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def start(environment, command):
  """A function of options that starts train.py with them."""
  pipe = subprocess.PIPE
  return lambda *options: subprocess.Popen(
    [*command, *options], env=environment, stdout=pipe, stderr=pipe, text=True
  )


@pytest.fixture
def command(backbone):
  """The command of a small run, to which options are added."""
  return [
    sys.executable,
    str(ROOT / "train.py"),
    f"--config={ROOT}/configs/quickstart.py:task=mini_digits,backbone=vit_test",
    f"--config.weights={backbone}",
    "--config.model.image_size=32",
    "--config.optim.epochs=3",
    "--config.batch_size=50",
    "--config.log.every_steps=3",
    "--config.eval.every_epochs=1",
    "--config.checkpoint.every_steps=2",
    "--config.data.train_split=train800",
    "--config.data.eval_split=val200",
  ]


def test_what_the_user_typed_wrongly_gives_one_line_and_exit_code_2(start, tmp_path):
  cases = {
    "--config.lrr=1": "no key 'lrr'; did you mean 'optim.lr'?",
    "--config.methods=ssf,loraa": "methods='loraa' does not exist; did you mean 'lora'?",
    "--wokdir=x": "no flag --wokdir; did you mean --workdir?",
    "--config.seed=x": "invalid literal for int()",
  }
  running = {option: start(option, f"--workdir={tmp_path}/x") for option in cases}
  for option, process in running.items():
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert cases[option] in err and len(err.splitlines()) == 1 and out == "", err
  assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("argument", [
  "backbone=tiny_convnext,methods=ssf,task=mini_texture",
])
def test_the_quickstart_on_the_tiny_backbones(argument, environment, tmp_path):
  command = [sys.executable, str(ROOT / "train.py")]
  command += [f"--config={ROOT}/configs/quickstart.py:{argument}", f"--workdir={tmp_path}/run"]
  command += ["--config.optim.epochs=2", "--config.optim.warmup_epochs=0", "--config.merge=True"]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / "run/result.json").read_text())
  assert result["test_accuracy"] > 0.3  # chance is 1 of 8 or 10
  assert result["merged_max_difference"] < 1e-3


def metrics(workdir):
  file = workdir / "metrics.jsonl"
  return len(file.read_text().splitlines()) if file.exists() else 0


def test_killed_runs_end_in_the_same_bits(start, tmp_path):
  options = ["--config.methods=lora", "--config.lora.dropout=0.1"]
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  reference = start(*options, f"--workdir={whole}")
  draw = random.Random(0)
  for rows in (1, 7):
    process = start(*options, f"--workdir={killed}")
    while metrics(killed) < rows and process.poll() is None:
      time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.05))  # a save takes most of every second step here
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert metrics(killed) >= rows and not (killed / "result.json").exists()
    process.communicate()
  process = start(*options, f"--workdir={killed}")
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  assert "going on from the checkpoint of step" in out
  out, err = reference.communicate(timeout=120)
  assert reference.returncode == 0, err
  for name in ("metrics.jsonl", "adapter.safetensors", "config.json", "parameters.txt"):
    assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
  results = [json.loads((folder / "result.json").read_text()) for folder in (whole, killed)]
  for result in results:
    del result["seconds"], result["versions"]["commit"]  # the tree may be edited meanwhile
  assert results[0] == results[1]
  rows = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
  assert len({(row["step"], "train_loss" in row) for row in rows}) == len(rows)


@pytest.fixture(scope="module")
def script():
  """train.py as a module."""
  spec = importlib.util.spec_from_file_location("train_script", ROOT / "train.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  "error, code, sentence",
  [
    (loop.NotFiniteError("The loss is not finite."), 5, "train.py: The loss is not finite.\n"),
    (OSError(errno.ENOSPC, "No space left on device", "/runs/x"), 4,
     "train.py: No space left on device (/runs/x): make room"),
    (PermissionError(errno.EACCES, "Permission denied", "/runs/x"), 3,
     "train.py: Permission denied (/runs/x): choose another --workdir"),
    (FileNotFoundError("There is no weights file w.npz."), 3,
     "train.py: There is no weights file w.npz.\n"),
    (KeyboardInterrupt(), 130, "train.py: interrupted; the same command goes on"),
  ],
  ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_exit_codes(script, monkeypatch, capsys, error, code, sentence):
  def run(config, workdir):
    raise error

  monkeypatch.setattr(script.loop, "run", run)
  monkeypatch.setattr(script, "CONFIG", types.SimpleNamespace(value=None))
  monkeypatch.setattr(script, "WORKDIR", types.SimpleNamespace(value=None))
  assert script.main([]) == code
  said = capsys.readouterr().err
  assert said.startswith(sentence) and len(said.splitlines()) == 1


def test_a_value_error_of_ours_is_a_sentence_and_any_other_a_traceback(
  script, monkeypatch, capsys
):
  monkeypatch.setattr(script, "CONFIG", types.SimpleNamespace(value=None))
  monkeypatch.setattr(script, "WORKDIR", types.SimpleNamespace(value=None))
  monkeypatch.setattr(script.loop, "run", lambda *_: models.preset("vit_b17"))
  assert script.main([]) == 1
  assert "no model 'vit_b17'" in capsys.readouterr().err
  monkeypatch.setattr(script.loop, "run", lambda *_: jax.numpy.zeros(3).reshape(2))
  with pytest.raises(TypeError):
    script.main([])
  monkeypatch.setattr(script.loop, "run", lambda *_: int("x"))
  with pytest.raises(ValueError):
    script.main([])


@pytest.mark.slow
def test_a_disk_that_fills_up_and_is_emptied(command, environment, tmp_path):
  """On a real file system of 400 KiB, in a mount namespace of its own."""
  if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"]).returncode:
    pytest.skip("this user may not mount a file system")
  line = " ".join(command) + f" --config.checkpoint.keep=9 --workdir={tmp_path}/run"
  done = subprocess.run(
    ["unshare", "-m", "bash", "-c",
     f"mount -t tmpfs -o size=400k tmpfs {tmp_path}; {line} >/dev/null; echo first $?;"
     f"mount -o remount,size=40m {tmp_path}; {line} | grep going; echo second $?"],
    env=environment,
    capture_output=True, text=True,
  )
  assert "first 4" in done.stdout and "second 0" in done.stdout, done.stdout + done.stderr
  assert len(done.stderr.splitlines()) == 1 and "No space left" in done.stderr, done.stderr
