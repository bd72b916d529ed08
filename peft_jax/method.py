"""The one abstraction: a method owns variables at sites and says, purely, how they act there."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from peft_jax.sites import LINEAR


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """What is trained at some sites of a backbone, and how it acts there.

  A method is a value: no state, hashable, printable. Its variables live in a collection of its own,
  at the path of the module they act on. Beside `init` it implements at least one of

    weights(site, params, v) -> params   a reparametrisation: the site's parameters after tuning
    call(site, v, params, layer, x, rng) -> y   anything else, around layer(params, x) -> y

  and both where `call` is the cheaper form: a frozen weight then costs no weight gradient. Laws:
  both agree; `call` returns the layer's dtype, `weights` the names and shapes it was given; all
  functions are pure and never see the layer axis of a scan, over which the engine maps.

  sites: regular expression for whole module paths (the head excluded), or exact paths.
  collection: name of the method's collection; set it to use one method twice.
  """

  kinds: ClassVar[tuple[type, ...]] = LINEAR

  sites: str | tuple[str, ...] = ".*"
  collection: str = ""

  weights = call = None
  fold = None  # fold(params_tree, tree) -> params_tree: the part of a merge not local to a site
  builds = {}  # options of models.create that the backbone must be built with
  folds_below = False  # whether `call` reads `params`: what lies below is folded into them
  chooses = False  # whether what it trains is chosen by `selection` before `init` is of use
  masked = None  # masked(tree) -> {path in params: places}: leaves trained at these places alone
  folded = ()  # the sites whose change `fold` alone carries: `weights` is not asked there

  def bind(self, table, chosen):
    """The method knowing the table and its `chosen` sites; ValueError where it cannot work."""
    return self

  def init(self, site, key, params):
    """{name: array}, the variables of one site; params: its own parameters, {} if not known."""
    return {}

  def derive(self, tree, table):
    """What the sites read, from what is trained; differs where sites share values."""
    return tree

  def trains(self, table, paths):
    """Paths in `params`, a subset of `paths`, that are trained as they are, beside the head."""
    return frozenset()

  def penalty(self, tree):
    """What the method adds to the loss, from its collection as trained."""
    return 0.0
