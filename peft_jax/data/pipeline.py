"""What happens to a batch between the data set and the model; runs inside or outside jit.

The order of examples is a function of (seed, step), so a restart needs no iterator state and any
number of devices or processes sees the same global batches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

MEAN_STD = {  # per channel, of pixels scaled to 0..1
  "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
  "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
  "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

ORDER = 0x0DE4  # folded into the seed: tells the order's draws from every other purpose's


def steps_per_epoch(batch, n):
  """n // batch: the remainder of each epoch is dropped, another one each time.

  Raises ValueError when n examples do not fill one batch.
  """
  if not 0 < batch <= n:
    raise ValueError(
      f"A batch of {batch} cannot be drawn from {n} training images; "
      f"choose a batch_size from 1 to {n}."
    )
  return n // batch


def order(seed, step, batch, n):
  """int32 [batch]: which of n examples make up the batch of training step `step` (from 0).

  Every epoch of n // batch steps is a new permutation. seed and step: integers, then the result is
  a NumPy array and each permutation is drawn once; or traced, then it is drawn in the program.
  """
  per_epoch = steps_per_epoch(batch, n)
  if isinstance(seed, jax.core.Tracer) or isinstance(step, jax.core.Tracer):
    step = jnp.asarray(step, jnp.int32)
    if not isinstance(seed, jax.core.Tracer):
      seed = np.uint32(int(seed) % 2**32)
    places = _permutation(jnp.asarray(seed).astype(jnp.uint32), step // per_epoch, n)
    return jax.lax.dynamic_slice_in_dim(places, step % per_epoch * batch, batch)
  epoch, place = divmod(int(step), per_epoch)
  places = _host_permutation(int(seed) % 2**32, epoch, n)
  return places[place * batch : (place + 1) * batch].copy()


@functools.partial(jax.jit, static_argnums=2)
def _permutation(seed, epoch, n):
  key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), ORDER)
  return jax.random.permutation(jax.random.fold_in(key, epoch), n).astype(jnp.int32)


@functools.lru_cache(maxsize=4)
def _host_permutation(seed, epoch, n):
  return np.asarray(_permutation(np.uint32(seed), np.int32(epoch), n))


def normalize(images, how, dtype=jnp.float32):
  """(images / 255 - mean) / std per channel, computed in float32, returned as `dtype`.

  images: [..., 3], 0..255, uint8 or float. how: "inception" (-1..1), "imagenet", "clip" or
    "none" (0..1).
  """
  if how not in MEAN_STD:
    raise ValueError(f"There is no normalize '{how}'; choose one of {', '.join(MEAN_STD)}.")
  shape = (1,) * (images.ndim - 1) + (3,)
  mean, std = (jnp.asarray(c, jnp.float32).reshape(shape) for c in MEAN_STD[how])
  return ((jnp.asarray(images).astype(jnp.float32) / 255.0 - mean) / std).astype(dtype)
