"""A run small enough for a test: two blocks of width 24 on 8 x 8 digits at 32 pixels."""

import csv
import errno
import functools
import pathlib

import jax
import numpy as np
import pytest

from peft_jax.train import checkpoint, loop, shard
from peft_jax.train import config as config_lib
from peft_jax.train import step as steps

HERE = pathlib.Path(__file__).parent
FAST = {"xla_backend_optimization_level": 0}  # compiles in half the time, runs slower


@pytest.fixture(scope="session")
def tiny(backbone):
  """A function of overrides ({"optim.lr": 1}) that makes a resolved config."""

  def make(overrides=()):
    config = config_lib.default().unlock()
    config.task = "mini_digits"
    config.weights = backbone
    config.batch_size = 40
    config.data.train_split = "train800"
    config.data.eval_split = "val200"
    config.model.name = "vit_test"
    config.optim.lr = 0.02
    config.optim.epochs = 2
    config.optim.warmup_epochs = 0
    config.eval.every_epochs = 1
    config.log.every_steps = 8
    config.log.tensorboard = False
    config.checkpoint.every_steps = 15
    config.update_from_flattened_dict(dict(overrides))
    return config_lib.resolve(config)

  return make


@pytest.fixture(scope="session")
def prepared(tiny):
  """A function of overrides that gives (parts, state, take).

  take(state, batches, how, devices) -> (state, frozen) on the host. Compiled once for equal
  arguments.
  """

  @functools.cache
  def make(overrides):
    config = tiny(overrides)
    parts = loop.prepare(config)

    @functools.cache
    def compiled(how, count):
      parallel = shard.parallel(how, jax.devices()[:count])
      step = steps.training_step(parts.tuned, parts.tx, config, parallel.axis)
      return parallel, parallel.step(step, FAST)

    def take(state, batches, how="jit", count=1):
      parallel, step = compiled(how, count)
      frozen = parallel.place(parts.frozen)
      state = parallel.place(jax.tree.map(np.array, state))
      for batch in batches:
        state = step(state, frozen, jax.device_put(batch, parallel.split))
      return jax.device_get(parallel.whole(state)), jax.device_get(parallel.whole(frozen))

    return parts, steps.start(parts.train, parts.tx, config.ema, parts.stats), take

  return lambda overrides=(): make(tuple(dict(overrides).items()))


@pytest.fixture
def digits():
  """A function of (parts, size, n) that gives the first n batches of the training split."""

  def batches(parts, size, n):
    split = parts.train_split
    return [
      {
        "image": split.images(np.arange(i * size, (i + 1) * size)),
        "label": split.labels[i * size : (i + 1) * size],
      }
      for i in range(n)
    ]

  return batches


@pytest.fixture
def on_a_full_disk(monkeypatch):
  """A function of (run, config, workdir): the run on a disk that is full after step 20's save."""

  def start(run, config, workdir):
    save = checkpoint.save

    def full(manager, step, state, meta):
      if step > 20:
        raise OSError(errno.ENOSPC, "No space left on device", str(manager.directory))
      save(manager, step, state, meta)

    with monkeypatch.context() as patch:
      patch.setattr(checkpoint, "save", full)
      with pytest.raises(OSError, match="No space left"):
        run(config, workdir)

  return start


@pytest.fixture(scope="session")
def resolved():
  """A function of ("vtab_ssf", "task=dtd") that gives {key: value} of the resolved config."""

  def read(name, argument):
    config = config_lib.read(f"{HERE.parents[1]}/configs/{name}.py:{argument}")
    return config_lib.flatten(config_lib.resolve(config))

  return read


@pytest.fixture(scope="session")
def facts():
  """A function of a file's name and of columns' values that gives the rows having these."""

  def rows(name, **values):
    with (HERE / "files" / f"{name}.csv").open() as file:
      found = [r for r in csv.DictReader(file) if all(r[k] == v for k, v in values.items())]
    assert found
    return found

  return rows


@pytest.fixture(scope="session")
def ssf_script():
  """A function of a row of files/ssf.csv, a published script, that gives what the config is."""
  number = {
    "batch_size": "global_batch", "optim.epochs": "epochs_arg", "optim.lr": "lr",
    "optim.cooldown_epochs": "cooldown_epochs", "optim.warmup_epochs": "warmup_epochs",
    "optim.weight_decay": "weight_decay", "optim.warmup_lr": "warmup_lr", "optim.min_lr": "min_lr",
    "model.drop_path": "drop_path", "model.image_size": "img_size", "ema": "ema_decay",
    "data.erasing": "random_erasing", "data.mixup": "mixup_alpha", "data.cutmix": "cutmix_alpha",
    "label_smoothing": "label_smoothing",
  }  # fmt: skip
  resize = {
    "squash_224": "bicubic_pil",
    "short_side_248_center_crop_224": "short_side",
    "short_side_256_center_crop_224": "short_side_875",
  }
  normalize = {"0.5 0.5 0.5": "inception", "0.485 0.456 0.406": "imagenet"}

  def keys(row):
    view = None if row["train_aug"] == "none_squash_resize" else "random_resized_crop"
    return {key: float(row[column] or 0) for key, column in number.items()} | {
      "task": row["dataset"],
      "model.name": row["backbone"],
      "optim.name": row["optimizer"],
      "data.view": view,
      "data.rand_augment": row["rand_augment"] or None,
      "data.interpolation": "random" if view is None else row["train_interp"].split("(")[0],
      "data.resize": resize[row["eval_resize"]],
      "data.normalize": normalize[row["mean"]],
    }

  return keys
