"""How a site's vectors and matrices meet its features: the last axes, whatever leads them."""

import math

import jax
import jax.numpy as jnp


def along(vector, y, axes=1):
  """`vector` in y's dtype, shaped to broadcast over all but the last `axes` axes of y."""
  return jnp.reshape(vector.astype(y.dtype), (1,) * (y.ndim - axes) + vector.shape)


def tokens(x, features):
  """x [..., *features] as [T, prod(features)]: 2-D products are the fast ones (measured)."""
  return jnp.reshape(x, (-1, math.prod(features)))


def narrowed(x, a):
  """x @ a for tokens x [T, inputs] and a small a [inputs, rank].

  The gradient of `a` is formed as [rank, inputs], which XLA does 8 times faster on CPU than as
  [inputs, rank]; the barrier keeps XLA from turning it around again.
  """
  return x @ jax.lax.optimization_barrier(a.T).T
