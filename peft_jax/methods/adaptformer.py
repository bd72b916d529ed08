"""AdaptFormer: a bottleneck beside a residual branch, which reads the stream as the branch does.

    branch(x)  ->  branch(x) + scale * (drop(relu(x D + d)) U + u)    D [channels, width]

x is the residual stream, before the branch's norm.

Source: Chen et al. 2022, arXiv:2205.13535, and its code (models/adapter.py).
Start: U is zero, so the tuned model starts equal to the backbone.
Merge: none; no weights give the same outputs, and `Tuned.merge` says so.
Where: the branch `mlp` of a ViT's or a Swin's blocks; the whole block of a ConvNeXt, which is the
  residual branch there.
Count: (inputs + outputs + 1) width + outputs at a site. ViT-B/16: width 64 1,189,632, 16 304,320.
Cost: width 64 adds 1.3 % to a ViT-B/16's forward pass.
Releases: the defaults, dropout and all, are the release's. It adds its bottleneck outside the
  branch's stochastic depth; here the branch is dropped with it. Without stochastic depth there is
  no difference.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from peft_jax.method import Method
from peft_jax.methods import bottleneck
from peft_jax.methods.dropout import check_rate

# down: uniform in +-1/sqrt(inputs); up: zeros.
INITIAL = (nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), nn.initializers.zeros)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptFormer(Method):
  """A bottleneck beside every module that `sites` selects, from its input to its output.

  Variables at a site that reads `inputs` and returns `outputs` channels:
    down: (inputs, width)   uniform in +-1/sqrt(inputs)   down_bias: (width,)  zeros
    up: (width, outputs)    zeros                         up_bias: (outputs,)  zeros

  sites: regular expression for whole module paths, or exact paths; of nested modules that an
    expression selects the innermost alone get variables.
  width: of the bottleneck, 1 or more.
  scale: of what it adds.
  dropout: probability of dropping a hidden unit, in [0, 1); needs the "tuning" rng stream, so a
    call without it (evaluation) is deterministic.
  """

  kinds: ClassVar[tuple[type, ...]] = (nn.Module,)

  sites: str | tuple[str, ...] = bottleneck.BRANCHES
  collection: str = "adaptformer"
  width: int = 64
  scale: float = 0.1
  dropout: float = 0.1

  def __post_init__(self):
    if self.width < 1:
      raise ValueError(f"AdaptFormer: width={self.width}; it must be at least 1.")
    check_rate(self, self.dropout)

  def bind(self, table, chosen):
    """The method with the paths that get variables as its sites."""
    places = bottleneck.counted(self.sites, chosen)
    for site in places.values():
      self._ends(site)
    return dataclasses.replace(self, sites=tuple(places))

  def _ends(self, site):
    return bottleneck.ends("AdaptFormer", site, parallel=True)

  def init(self, site, key, params):
    if site.path not in self.sites:
      return {}
    into, out = self._ends(site)
    return bottleneck.variables(key, into, self.width, out, INITIAL)

  def call(self, site, v, params, layer, x, rng):
    y = layer(params, x)
    into, _ = self._ends(site)
    more = bottleneck.bottleneck(v, x.astype(y.dtype), into, jax.nn.relu, self.dropout, rng)
    return y + self.scale * jnp.reshape(more, y.shape)
