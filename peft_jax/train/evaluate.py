"""Top-1 accuracy and loss over a whole split, padded to equal batches and masked."""

from __future__ import annotations

import functools

import jax
import numpy as np

from peft_jax import data
from peft_jax.train.step import cross_entropy


def predictor(tuned, normalize, parallel, options=None):
  """logits(variables, images uint8 [B, S, S, 3]) -> [B, K], compiled; B divides over devices.

  options: of the compiler.
  """

  @functools.partial(
    jax.jit,
    in_shardings=(parallel.copied, parallel.split),
    out_shardings=parallel.copied,
    compiler_options=options,
  )
  def logits(variables, images):
    return tuned.apply(variables, data.normalize(images, normalize))

  return logits


def evaluate(logits, variables, images, labels, batch_size, parallel):
  """{"accuracy", "loss", "correct", "count", "per_class"} of `logits` on all images.

  logits: see `predictor`. images: indices -> uint8 [n, S, S, 3]; labels: int32 [N].
  batch_size: rounded up to a multiple of the devices; the last batch is padded with black
    images that count for nothing, so that batch size and devices do not change the result
    (`correct` is a sum of integers, `loss` a double-precision mean of per-example losses).
  per_class: accuracy of each label, None for labels without an example.
  """
  count, devices = len(labels), len(parallel.devices)
  batch_size = -(-min(batch_size, count) // devices) * devices
  losses, found, classes = np.zeros(count, np.float32), np.zeros(count, np.int64), 0
  running = None
  for start in [*range(0, count, batch_size), None]:
    ahead = None
    if start is not None:
      here = np.arange(start, min(start + batch_size, count))
      padding = [(0, batch_size - len(here)), (0, 0), (0, 0), (0, 0)]
      batch = jax.device_put(np.pad(images(here), padding), parallel.split)
      ahead = here, logits(variables, batch)
    if running is not None:  # read while the next batch runs
      here, out = running
      out = np.asarray(out)[: len(here)].astype(np.float32)
      losses[here] = cross_entropy(out, labels[here])
      found[here] = out.argmax(-1)
      classes = out.shape[-1]
    running = ahead
  right = found == labels
  per_class = [right[labels == c] for c in range(classes)]
  return {
    "accuracy": float(right.sum() / count),
    "loss": float(losses.astype(np.float64).mean()),
    "correct": int(right.sum()),
    "count": count,
    "per_class": [float(r.mean()) if len(r) else None for r in per_class],
  }
