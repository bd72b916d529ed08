"""A run killed ten times, three times or more in the middle of a save, ends in the same bits."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
KILLS, INSIDE_SAVES = 10, 4  # one more than asked of the campaign: a save may end just in time
COMPARED = ("metrics.jsonl", "adapter.safetensors", "merged.safetensors")


@pytest.fixture(scope="module")
def command(backbone):
  """320 steps with an average of the weights, a checkpoint every 20, merged weights at the end."""
  return [
    sys.executable,
    str(ROOT / "train.py"),
    f"--config={ROOT}/configs/quickstart.py:task=mini_digits,backbone=vit_test",
    f"--config.weights={backbone}",
    "--config.model.image_size=32",
    "--config.optim.epochs=20",
    "--config.batch_size=50",
    "--config.data.train_split=train800",
    "--config.data.eval_split=val200",
    "--config.eval.every_epochs=5",
    "--config.checkpoint.every_steps=20",
    "--config.ema=0.99",
    "--config.merge=True",
    "--config.log.tensorboard=False",
  ]


def start(command, workdir, environment):
  pipe = subprocess.PIPE
  arguments = [*command, f"--workdir={workdir}"]
  return subprocess.Popen(arguments, env=environment, stdout=pipe, stderr=pipe, text=True)


def half_written(workdir):
  """Whether a checkpoint lies there under its temporary name: a save is under way."""
  folder = workdir / "checkpoints"
  return folder.exists() and any(".orbax-checkpoint-tmp" in path.name for path in folder.iterdir())


def steps_done(workdir):
  rows = workdir / "progress.jsonl"
  lines = rows.read_text().splitlines() if rows.exists() else []
  try:
    return json.loads(lines[-1])["step"] if lines else 0
  except json.JSONDecodeError:
    return 0


def wait_until(true, process, limit=120):
  """Polls fast; False when the process ended first."""
  end = time.monotonic() + limit
  while not true():
    if process.poll() is not None or time.monotonic() > end:
      return False
    time.sleep(0.0005)
  return True


@pytest.mark.slow
def test_ten_kills_change_no_bit(command, environment, tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  environment = environment | {"XLA_FLAGS": ""}  # programs as users run them
  process = start(command, whole, environment)
  _, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors
  expected = json.loads((whole / "result.json").read_text())
  assert expected["steps"] >= 300

  chance, inside = random.Random(0), 0
  for kill in range(KILLS):
    begun = steps_done(killed)
    process = start(command, killed, environment)
    # Kills spread over the run: each waits for some progress, so that none comes after the end.
    target = begun + chance.randrange(1, 22)
    running = wait_until(lambda target=target: steps_done(killed) >= target, process)
    if kill % 2 == 0 or inside < INSIDE_SAVES and kill >= KILLS - INSIDE_SAVES:
      running = running and wait_until(lambda: half_written(killed), process)
    else:
      time.sleep(chance.random() * 0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert running, f"the run ended before kill {kill}"
    assert process.returncode == -signal.SIGKILL
    inside += half_written(killed)  # left behind by the kill: the save had not been completed
  assert inside >= 3, f"only {inside} of {KILLS} kills fell into a save"

  process = start(command, killed, environment)
  output, errors = process.communicate(timeout=600)
  assert process.returncode == 0, errors
  assert "going on from the checkpoint" in output
  for name in COMPARED:
    assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
  found = json.loads((killed / "result.json").read_text())
  for result in (expected, found):
    del result["seconds"], result["versions"]["commit"]  # the tree may be edited meanwhile
  assert found == expected
