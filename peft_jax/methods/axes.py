"""How a site's vectors and matrices meet its features: the last axes, whatever leads them."""

import math

import jax.numpy as jnp


def along(vector, y, axes=1):
  """`vector` in y's dtype, shaped to broadcast over all but the last `axes` axes of y."""
  return jnp.reshape(vector.astype(y.dtype), (1,) * (y.ndim - axes) + vector.shape)


def tokens(x, features):
  """x [..., *features] as [T, prod(features)]: 2-D products are the fast ones (measured)."""
  return jnp.reshape(x, (-1, math.prod(features)))
