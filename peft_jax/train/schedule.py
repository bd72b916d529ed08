"""The learning rate: cosine by epoch with a linear warm-up, as timm or VPT's code computes it."""

import jax.numpy as jnp
import numpy as np


def cosine(
  lr, *, steps_per_epoch, epochs, warmup_epochs=0, warmup_lr=0.0, min_lr=0.0, lag=0, shifted=False
):
  """A function step -> learning rate, jittable, constant within an epoch.

  The values are computed in double precision and rounded to float32. In epoch
  t = step // steps_per_epoch - lag (not below 0), with b = lr, w = warmup_lr, m = min_lr:

      t < warmup_epochs   w + t (b - w) / warmup_epochs
      t < epochs          m + (b - m) (1 + cos(pi t / epochs)) / 2
      otherwise           m                                          (the cool-down)

  Unless `shifted`, the cosine sets in below b. Epoch 0 runs at w.
  lr, warmup_lr, min_lr: absolute; the last two are lowered to lr where they exceed it.
  shifted: whether the cosine sets in at b where the warm-up ends, as in VPT's code: then t is
    t - warmup_epochs and epochs is epochs - warmup_epochs in the second line.
  lag: 1 reproduces the released SAN loop, which steps its schedule one epoch late.

  timm 0.6.5, scheduler/cosine_lr.py with t_in_epochs and no warm-up prefix.
  """
  warmup_lr, min_lr = min(warmup_lr, lr), min(min_lr, lr)
  t = np.arange(max(epochs, warmup_epochs) + 1, dtype=np.float64)
  first = warmup_epochs if shifted else 0
  angle = np.pi * (t - first) / max(epochs - first, 1)
  rates = min_lr + (lr - min_lr) * (1 + np.cos(angle)) / 2
  rates = np.where(t < epochs, rates, min_lr)
  warm = warmup_lr + t * (lr - warmup_lr) / max(warmup_epochs, 1)
  rates = np.where(t < warmup_epochs, warm, rates).astype(np.float32)

  def value(step):
    epoch = jnp.clip(step // steps_per_epoch - lag, 0, len(rates) - 1)
    return jnp.asarray(rates)[epoch]

  return value
