"""Dropout on the path a method adds: it acts only where a call has the rng stream "tuning"."""

import jax
import jax.numpy as jnp


def dropped(x, rate, rng):
  """x with entries dropped at `rate` and the rest scaled up; x itself without a key."""
  if rng is None or not rate:
    return x
  keep = jax.random.bernoulli(rng, 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def check_rate(method, rate):
  """Raises ValueError unless `rate`, the field `dropout` of a method, is a probability below 1."""
  if not 0 <= rate < 1:
    raise ValueError(f"{type(method).__name__}: dropout={rate}; it must lie in [0, 1).")
