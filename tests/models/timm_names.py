"""timm's names and layouts: parameters drawn for them by one rule, and how they become ours."""

import numpy as np

from peft_jax.tree import nest
from peft_jax.weights import names


def fill(shapes):
  """The j-th name in sorted order gets RandomState(j)'s normal draws, scaled by its kind."""
  out = {}
  for j, name in enumerate(sorted(shapes)):
    shape = shapes[name]
    r = np.random.RandomState(j).standard_normal(int(np.prod(shape))).reshape(shape)
    if len(shape) == 1:
      out[name] = 0.25 * r + (1 if name.endswith(("weight", "gamma")) else 0)
    elif name.endswith(("token", "pos_embed", "bias_table")):
      out[name] = 0.5 * r
    else:
      out[name] = r / np.sqrt(np.prod(shape[1:]))
  return out


def images(size):
  return np.random.RandomState(1000).standard_normal((2, size, size, 3))


def converted(state):
  """A timm state dict of any of the families as a tree of ours."""
  return nest(names.timm(state))
