"""A user's own images, from folders to a prediction, through the commands the README names."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
COLOURS = {"red apple": (200, 30, 30), "grün": (30, 200, 30), "blau": (30, 30, 200)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """Twelve noisy pictures of each colour, of several sizes and formats."""
  root, draw = tmp_path_factory.mktemp("my pictures"), np.random.default_rng(0)
  for name, colour in COLOURS.items():
    (root / name).mkdir()
    for i in range(12):
      shape = (int(draw.integers(40, 90)), int(draw.integers(40, 90)), 3)
      noisy = np.clip(np.array(colour) + draw.normal(0, 20, shape), 0, 255).astype(np.uint8)
      Image.fromarray(noisy).save(root / name / f"{i}.{('png', 'jpg')[i % 2]}")
  return root


@pytest.fixture
def run(environment):
  """A function of a program's arguments that runs it."""
  return lambda *arguments: subprocess.run(
    [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True,
    text=True,
  )


@pytest.fixture
def train(run, backbone):
  """A function of (images, workdir) that trains a small model on them."""
  return lambda root, workdir: run(
    "train.py", "--config=configs/folder.py:backbone=vit_test", f"--config.data.root={root}",
    f"--config.weights={backbone}", f"--workdir={workdir}", "--config.optim.epochs=30",
    "--config.batch_size=14", "--config.optim.lr=0.02", "--config.eval.every_epochs=30",
  )


def test_train_predict_evaluate_merge(run, train, pictures, tmp_path):
  done = train(pictures, tmp_path / "run")
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  split = result["eval_split"]
  assert result[f"{split}_accuracy"] > 0.9  # colour is easy: less means mixed-up labels

  adapter = tmp_path / "run" / "adapter.safetensors"
  files = [pictures / name / "0.png" for name in COLOURS]
  done = run("-m", "peft_jax", "predict", adapter, *files)
  assert done.returncode == 0, done.stderr
  for line, file, name in zip(done.stdout.splitlines(), files, COLOURS, strict=True):
    assert line.startswith(f"{file}: {name} "), line

  where = (f"--data.root={pictures}", f"--split={split}")
  done = run("-m", "peft_jax", "evaluate", adapter, *where)
  assert f"({result[f'{split}_correct']} of {result[f'{split}_count']})" in done.stdout, done.stderr

  merged = tmp_path / "merged.safetensors"
  done = run("-m", "peft_jax", "merge", adapter, where[0], f"--out={merged}")
  assert done.returncode == 0 and merged.exists() and "change the logits" in done.stdout, done


def test_folders_that_cannot_work_are_named(train, tmp_path):
  (tmp_path / "two" / "full").mkdir(parents=True)
  (tmp_path / "two" / "empty").mkdir()
  Image.new("RGB", (9, 9)).save(tmp_path / "two" / "full" / "a.png")
  for name in ("x", "y"):
    (tmp_path / "bad" / name).mkdir(parents=True)
    for file in ("a.png", "b.png"):
      Image.new("RGB", (9, 9)).save(tmp_path / "bad" / name / file)
  (tmp_path / "bad" / "x" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
  for root, named in ((tmp_path / "two", "empty"), (tmp_path / "bad", "broken.jpg")):
    done = train(root, tmp_path / "run")
    sentence = done.stderr.strip().splitlines()
    assert done.returncode in (1, 3) and len(sentence) == 1 and named in sentence[0], done.stderr


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="needs a place nobody may write to")
def test_a_place_nobody_may_write_to(train, pictures):
  done = train(pictures, "/sys/peft_jax_run")
  sentence = done.stderr.strip().splitlines()
  assert done.returncode == 3 and len(sentence) == 1 and "/sys/peft_jax_run" in sentence[0], done
