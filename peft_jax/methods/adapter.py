"""Adapter: a bottleneck behind a module, which adds to what the module returns.

    y  ->  y + drop(act(y D + d)) U + u        D [channels, width], U [width, channels]

Source: Houlsby et al. 2019, arXiv:1902.00751; one per block, behind the MLP, as Pfeiffer et al.
  2020, arXiv:2005.00247.
Start: U is zero, so the tuned model starts equal to the backbone.
Merge: none; no weights give the same outputs, and `Tuned.merge` says so.
Where: inside the residual branch `mlp` of a ViT's or a Swin's blocks, behind its fc2 and layer
  scale; behind the whole block of a ConvNeXt, which is the residual branch there.
Count: (2 outputs + 1) width + outputs at a site. ViT-B/16: width 8 156,768, 32 599,424; reduction 8
  1,779,840, 64 230,544, 256 64,548.
Cost: width 8 adds 0.2 % to a ViT-B/16's forward pass.
Releases: "Adapter-k" is width k in NOAH and SPT, reduction k in VPT.
  - NOAH's: `act` "quick_gelu", `dropout` 0.1, `initial` "trunc_normal_both". It sits behind the
    branch's stochastic depth: a dropped branch is adapted as zeros. Here the branch is dropped with
    its adapter; without stochastic depth there is no difference.
  - SPT's: `sites` ".*/(attn/(q|k|v|proj)|mlp/fc[12])" or fewer, `parallel` ("proj",), `act` "gelu"
    (the paper says relu), `initial` "trunc_normal_both", `dropout` 0.1 but at proj. Each has
    stochastic depth of its own there, not here.
  - VPT's: `reduction`, `act` "gelu", `initial` "vpt_zero".
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from peft_jax.method import Method
from peft_jax.methods import bottleneck
from peft_jax.methods.dropout import check_rate

ACTS = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "relu": jax.nn.relu,
}

# Of down and up. What the releases of NOAH and SPT call a truncated normal is cut at +-2, at a
# hundred standard deviations.
ZEROS, NORMAL = nn.initializers.zeros, nn.initializers.normal(0.02)
INITIAL = {
  "zero_up": (nn.initializers.xavier_uniform(), ZEROS),
  "trunc_normal_both": (NORMAL, NORMAL),
  "vpt_zero": (ZEROS, ZEROS),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter(Method):
  """A bottleneck behind every module that `sites` selects: a branch, a layer, a convolution.

  Variables at a site that reads `inputs` and returns `outputs` channels (those of a DenseGeneral
  are the product of its axes):
    down: (inputs, width)   uniform in +-sqrt(6 / (inputs + width))   down_bias: (width,)  zeros
    up: (width, outputs)    zeros                                     up_bias: (outputs,)  zeros

  sites: regular expression for whole module paths, or exact paths; of nested modules that an
    expression selects the innermost alone get variables.
  width: of the bottleneck, 1 or more; where `reduction` is 0.
  reduction: width = outputs // reduction at every site; 0 uses `width`.
  act: "quick_gelu" (x sigmoid(1.702 x)), "gelu" (exact) or "relu".
  dropout: probability of dropping a hidden unit, in [0, 1); needs the "tuning" rng stream, so a
    call without it (evaluation) is deterministic.
  initial: "zero_up"; "trunc_normal_both", N(0, 0.02^2) for down and up, which does NOT start equal
    to the backbone; "vpt_zero", zeros for both: neither ever gets a gradient, nor does down_bias,
    and only up_bias learns, as in VPT's code; its tables of "Adapter" look like it, too.
  parallel: names of layers whose adapter reads their input, so "proj" in SPT.
  """

  kinds: ClassVar[tuple[type, ...]] = (nn.Module,)

  sites: str | tuple[str, ...] = bottleneck.BRANCHES
  collection: str = "adapter"
  width: int = 8
  reduction: int = 0
  act: str = "quick_gelu"
  dropout: float = 0.0
  initial: str = "zero_up"
  parallel: tuple[str, ...] = ()

  def __post_init__(self):
    for name, least in (("width", 1), ("reduction", 0)):
      if getattr(self, name) < least:
        raise ValueError(f"Adapter: {name}={getattr(self, name)}; it must be at least {least}.")
    for name, allowed in (("act", ACTS), ("initial", INITIAL)):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"Adapter: {name}={getattr(self, name)!r}; it must be one of {', '.join(allowed)}."
        )
    check_rate(self, self.dropout)

  def bind(self, table, chosen):
    """The method with the paths that get variables as its sites."""
    places = bottleneck.counted(self.sites, chosen)
    for path, site in places.items():
      _, out = self._ends(site)
      if self.reduction > math.prod(out):
        raise ValueError(
          f"Adapter: reduction={self.reduction} leaves nothing of the {math.prod(out)} channels "
          f"of {path}; choose a smaller one, or set `width`."
        )
    if strangers := set(self.parallel) - {path.rpartition("/")[2] for path in places}:
      raise ValueError(
        f"Adapter: parallel names {sorted(strangers)[0]!r}, but no adapter sits at such a layer; "
        f"they sit at {next(iter(places))} and the like."
      )
    return dataclasses.replace(self, sites=tuple(places))

  def _ends(self, site):
    return bottleneck.ends("Adapter", site, self._reads_input(site))

  def _reads_input(self, site):
    return site.path.rpartition("/")[2] in self.parallel

  def init(self, site, key, params):
    if site.path not in self.sites:
      return {}
    into, out = self._ends(site)
    width = math.prod(out) // self.reduction if self.reduction else self.width
    return bottleneck.variables(key, into, width, out, INITIAL[self.initial])

  def call(self, site, v, params, layer, x, rng):
    y = layer(params, x)
    read = x.astype(y.dtype) if self._reads_input(site) else y
    into, _ = self._ends(site)
    more = bottleneck.bottleneck(v, read, into, ACTS[self.act], self.dropout, rng)
    return y + jnp.reshape(more, y.shape)
