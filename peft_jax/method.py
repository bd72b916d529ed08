"""The one abstraction: a method owns variables at sites and says, purely, how they act there."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from peft_jax.sites import LINEAR


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """What is trained at some sites of a backbone, and how it acts there.

  A method is a value: no state, hashable, printable. Its variables live in one collection of
  its own, at the path of the module they act on: variables["lora"]["encoder"]["blocks_0"]
  ["attn"]["q"]["a"]. It implements `init` and at least one of

    weights(site, params, v) -> params   a reparametrisation: the site's parameters after tuning
    call(site, v, params, layer, x, rng) -> y   anything else, around layer(params, x) -> y

  and may implement both, when `call` is the cheaper form of `weights`: a frozen weight then
  costs no weight gradient. Laws, held by tests/contract_test.py for every method:

    both forms agree; `call` returns the dtype the layer returns; `weights` returns the names
    and shapes it was given; the functions are pure and never see the layer axis of a scan
    (the engine maps over it); initial values depend on the key, the collection and the path.

  sites: regular expression for whole module paths (the head excluded), or exact paths.
  collection: name of the method's collection; set it to use one method twice.
  """

  kinds: ClassVar[tuple[type, ...]] = LINEAR

  sites: str | tuple[str, ...] = ".*"
  collection: str = ""

  def bind(self, table, chosen):
    """The method with what it needs to know of the whole table; `chosen` are its sites.

    Raises ValueError where the method cannot work on this model.
    """
    del table, chosen
    return self

  def init(self, site, key, params):
    """{name: array}, the variables of one site without stacked axes.

    params: the site's own parameters, {} when the caller has none yet.
    """
    del site, key, params
    return {}

  def derive(self, tree, table):
    """What the sites read, from what is trained. Identity unless sites share values."""
    del table
    return tree

  weights = None
  call = None
  fold = None  # fold(params_tree, tree) -> params_tree: a merge that is not local to a site

  def trains(self, table, paths):
    """Paths in `params` (a subset of `paths`) that are trained as they are, beside the head."""
    del table, paths
    return frozenset()

  def penalty(self, tree):
    """What the method adds to the loss, from its (not derived) collection."""
    del tree
    return 0.0


def along(vector, y, axes=1):
  """`vector` in y's dtype, shaped to broadcast over all but the last `axes` axes of y."""
  shape = vector.shape[-axes:] if axes else ()
  return jnp.reshape(vector.astype(y.dtype), (1,) * (y.ndim - axes) + shape)


def tokens(x, features):
  """x [..., *features] as [T, prod(features)]: 2-D products are the fast ones (measured)."""
  size = 1
  for axis in features:
    size *= axis
  return jnp.reshape(x, (-1, size))
