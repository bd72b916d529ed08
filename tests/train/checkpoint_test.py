"""Checkpoints give back the same bits, or say that they cannot."""

import errno
import pathlib
import shutil
import subprocess
import sys
import time

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from peft_jax.train import checkpoint
from peft_jax.tree import flat

META = {"last": None, "seconds": 1.5}


def state_of(step):
  """A state with the structures that occur: optax tuples, scalars, small dtypes, odd values."""
  draw = np.random.default_rng(step).normal
  train = {
    "params": {"head": {"kernel": draw(size=(300, 7)).astype(np.float32)}},
    "lora": {"a": draw(size=5).astype(ml_dtypes.bfloat16)},
  }
  train["params"]["head"]["kernel"][0, :3] = [-0.0, np.nan, np.inf]
  tx = optax.chain(optax.identity(), optax.scale_by_adam())
  return {"train": train, "opt": tx.init(train), "step": np.array(step, np.int32)}


@pytest.fixture
def saved(tmp_path):
  """A folder with checkpoints 10, 20 and 30."""
  with checkpoint.open(tmp_path / "checkpoints", keep=3) as manager:
    for step in (10, 20, 30):
      checkpoint.save(manager, step, state_of(step), META | {"last": step})
  return tmp_path / "checkpoints"


def restored(folder, like=None):
  said = []
  with checkpoint.open(folder, keep=3) as manager:
    found = checkpoint.restore(manager, like or state_of(0), said.append)
    steps = sorted(manager.all_steps())
  return found, said, steps


def largest_file(folder):
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_newest_comes_back_bit_for_bit_in_its_structure(saved):
  (step, state, meta), said, steps = restored(saved)
  assert (step, meta["last"], meta["seconds"], said, steps) == (30, 30, 1.5, [], [10, 20, 30])
  assert isinstance(state["opt"][1], optax.ScaleByAdamState)
  before, after = checkpoint.named(state_of(30)), checkpoint.named(state)
  assert checkpoint.digest(before) != checkpoint.digest(checkpoint.named(state_of(20)))
  for name in before:
    assert before[name].dtype == after[name].dtype
    assert before[name].tobytes() == after[name].tobytes(), name


def test_an_empty_folder_has_none_and_the_oldest_are_removed(tmp_path):
  assert restored(tmp_path / "none") == (None, [], [])
  with checkpoint.open(tmp_path / "two", keep=2) as manager:
    for step in (1, 2, 3, 4):
      checkpoint.save(manager, step, state_of(step), META)
    checkpoint.wait(manager)
    assert sorted(manager.all_steps()) == [3, 4]


def test_what_is_saved_may_be_donated_at_once(tmp_path):
  state = {"x": jnp.arange(100_000.0)}
  with checkpoint.open(tmp_path, keep=2) as manager:
    checkpoint.save(manager, 1, state, META)
    state["x"].delete()
    checkpoint.wait(manager)
    _, found, _ = checkpoint.restore(manager, {"x": np.zeros(100_000, np.float32)})
  np.testing.assert_array_equal(found["x"], np.arange(100_000))


def truncate(folder):
  file = largest_file(folder / "state")
  file.write_bytes(file.read_bytes()[:500])


def flip(folder):
  file = largest_file(folder / "state")
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def cut_meta(folder):
  file = folder / "meta" / "metadata"
  file.write_text(file.read_text()[:5])


@pytest.mark.parametrize("damage", [truncate, flip, empty, cut_meta])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(saved, damage):
  damage(saved / "30")
  (step, state, _), said, steps = restored(saved)
  assert step == 20 and steps == [10, 20]
  assert len(said) == 1 and "checkpoint 30 is damaged" in said[0] and "\n" not in said[0]
  assert checkpoint.digest(checkpoint.named(state)) == checkpoint.digest(
    checkpoint.named(state_of(20))
  )
  with checkpoint.open(saved, keep=3) as manager:  # its step can be written again
    checkpoint.save(manager, 30, state_of(30), META)
  assert restored(saved)[0][0] == 30


def test_only_damaged_checkpoints_are_an_error_and_are_left_in_place(saved):
  for step in (10, 20, 30):
    flip(saved / str(step))
  with pytest.raises(ValueError, match=r"All checkpoints in .* are damaged \(steps 30, 20, 10\)"):
    restored(saved)
  assert sorted(p.name for p in saved.iterdir()) == ["10", "20", "30"]


def test_a_half_written_checkpoint_is_known_by_its_name_and_removed(saved):
  half = saved / "40.orbax-checkpoint-tmp"
  shutil.copytree(saved / "30", half)
  assert checkpoint.half_written(saved) == [40]
  assert restored(saved)[0][0] == 30
  for _ in range(200):  # it is removed in the background
    if not half.exists():
      break
    time.sleep(0.05)
  assert not half.exists()


def test_another_model_is_refused_in_one_sentence(saved):
  like = state_of(0)
  like["train"]["params"]["head"]["kernel"] = np.zeros((300, 8), np.float32)
  with pytest.raises(ValueError, match=r"holds \(300, 7\) for train/params/head/kernel, this run"):
    restored(saved, like)
  like = state_of(0)
  like["train"]["san"] = {"scale": np.zeros(3, np.float32)}
  with pytest.raises(ValueError, match="nothing for train/san/scale"):
    restored(saved, like)


def test_a_full_disk_is_an_oserror_whatever_the_library_calls_it(saved, monkeypatch):
  with checkpoint.open(saved, keep=3) as manager:

    def full(*args, **kwargs):
      raise ValueError("RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']")

    monkeypatch.setattr(type(manager), "save", full)
    with pytest.raises(OSError) as caught:
      checkpoint.save(manager, 40, state_of(40), META)
  assert caught.value.errno == errno.ENOSPC and str(saved) in str(caught.value)
  assert restored(saved)[0][0] == 30


FILL = """
import sys
import numpy as np
from absl import logging
from peft_jax.train import checkpoint

class Broken:
  def __del__(self):
    raise RuntimeError("of another kind")

logging.set_verbosity(logging.FATAL)
checkpoint.mute_late_writes()
manager = checkpoint.open(sys.argv[1], 9)
state = {f"leaf{i}": np.random.default_rng(i).normal(size=4000) for i in range(60)}
try:
  for step in range(9):
    checkpoint.save(manager, step, state, {})
  checkpoint.wait(manager)
except OSError as error:
  print("errno", error.errno)
Broken()
"""


@pytest.mark.slow
def test_writes_left_over_by_a_full_disk_print_nothing_and_other_errors_do(tmp_path):
  """Sixty arrays on a real file system of 400 KiB: one write fails while others are under way."""
  if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"]).returncode:
    pytest.skip("this user may not mount a file system")
  (tmp_path / "fill.py").write_text(FILL)
  line = f"mkdir {tmp_path}/disk; mount -t tmpfs -o size=400k tmpfs {tmp_path}/disk; " + (
    f"{sys.executable} -W ignore {tmp_path}/fill.py {tmp_path}/disk/run"
  )
  done = subprocess.run(["unshare", "-m", "bash", "-c", line], capture_output=True, text=True)
  assert done.stdout == f"errno {errno.ENOSPC}\n", done.stderr
  assert "Event loop is closed" not in done.stderr
  assert done.stderr.count("Traceback") == 1 and "of another kind" in done.stderr


def test_names_are_paths_and_survive_the_round_trip():
  names = checkpoint.named(state_of(0))
  assert "train/params/head/kernel" in names and "opt/1/mu/lora/a" in names
  assert flat(state_of(0)["train"]).keys() == {
    name.removeprefix("train/") for name in names if name.startswith("train/")
  }
  assert pathlib.PurePosixPath("opt/1/count").as_posix() in names
