"""Training batches by step: {"image": uint8 [B, S, S, 3], "label": int32 [B]}, on the devices.

Which images make up a batch is `data.order(seed, step, ...)`, so a feed has no state and a
restart, another number of devices or another feed sees the same batches. So do random views,
whose draws come from (seed, step, place in the batch).
"""

from __future__ import annotations

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import data


def feed(split, batch_size, seed, parallel, resident_mb, view=None):
  """A function step -> batch over the images of `split`.

  The images are kept on every device when they take at most `resident_mb` MiB there, else each
  batch is read while the step before it runs. view: a data.view.View, which makes every image anew
  from its file, so that nothing is kept.
  """
  size = len(split) * split.size**2 * 3 / 2**20
  if view is None and size <= resident_mb:
    return resident(split, batch_size, seed, parallel)
  return streamed(split, batch_size, seed, parallel, view)


def resident(split, batch_size, seed, parallel):
  """The feed that reads all images once, onto every device."""
  images, labels = jax.device_put((split.images(), split.labels), parallel.copied)

  @functools.partial(jax.jit, out_shardings=parallel.split)
  def take(images, labels, step):
    chosen = data.order(seed, step, batch_size, len(split))
    return {"image": images[chosen], "label": labels[chosen]}

  return lambda step: take(images, labels, jnp.int32(step))


def streamed(split, batch_size, seed, parallel, view=None):
  """The feed that reads every batch anew, one step ahead; see `feed`."""
  shape = (batch_size, split.size, split.size, 3)
  reader = concurrent.futures.ThreadPoolExecutor(1)
  ahead = {}

  def read(step):
    chosen = np.asarray(data.order(seed, jnp.int32(step), batch_size, len(split)))

    def image(at):
      if view is None:
        return split.images(chosen[at[0]])
      places = range(batch_size)[at[0]]
      draws = [data.view.draws(seed, step, place) for place in places]
      return split.views(chosen[at[0]], view, draws)

    label = lambda at: split.labels[chosen[at[0]]]  # noqa: E731
    return {
      "image": jax.make_array_from_callback(shape, parallel.split, image),
      "label": jax.make_array_from_callback((batch_size,), parallel.split, label),
    }

  def batch(step):
    now = ahead.pop(step, None) or reader.submit(read, step)
    ahead.clear()
    ahead[step + 1] = reader.submit(read, step + 1)
    return now.result()

  return batch
