"""A run small enough for a test: two blocks of width 24 on 8 x 8 digits at 32 pixels."""

import errno
import functools

import jax
import numpy as np
import pytest

from peft_jax.train import checkpoint, loop, shard
from peft_jax.train import config as config_lib
from peft_jax.train import step as steps

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
