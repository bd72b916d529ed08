"""IA3: scale the keys, the values and the hidden features of each block.

    k -> l_k * k,    v -> l_v * v,    fc2(x) -> fc2(l_ff * x)        per feature

Source: Liu et al. 2022, arXiv:2205.05638, section 3.3.
Start: all at one, so the tuned model starts equal to the backbone, bit for bit.
Merge: W' = W diag(l) and b' = l * b for an output scale, W' = diag(l) W for an input scale.
Where: the layers k, v and fc2 of every block of a ViT or a Swin, fc2 of a ConvNeXt's blocks.
  Convolutions are left out; a pattern or a path that asks for one is a ValueError.
Count: outputs of k and v, inputs of fc2: 12 (768 + 768 + 3,072) = 55,296 on ViT-B/16.
Cost: a product per feature, below 0.1 % of a forward pass, until it is merged.
Releases: HF PEFT does the same, where k and v are layers of their own; in timm's fused qkv it
  cannot name them.
"""

from __future__ import annotations

import dataclasses
import re

import jax.numpy as jnp

from peft_jax.method import Method
from peft_jax.methods.axes import along
from peft_jax.methods.fitting import fitting


@dataclasses.dataclass(frozen=True, kw_only=True)
class IA3(Method):
  """A scale on the output, or on the input, of the linear layers `sites` selects.

  Variables at a site:
    scale: fan_out, or fan_in where the input is scaled   ones

  inputs: regular expression for the names of the layers whose input is scaled, HF PEFT's
    `feedforward_modules`.
  """

  sites: str | tuple[str, ...] = r"(.*/)?(attn/[kv]|fc2)"
  collection: str = "ia3"
  inputs: str = "fc2"

  def bind(self, table, chosen):
    why = "a convolution, and IA3 scales the features of linear layers"
    fitting(self, chosen, lambda site: site.is_conv, why)
    return self

  def init(self, site, key, params):
    if site.is_conv:
      return {}
    return {"scale": jnp.ones(site.fan_in if self._scales_input(site) else site.fan_out)}

  def _scales_input(self, site):
    return re.fullmatch(self.inputs, site.path.rpartition("/")[2]) is not None

  def weights(self, site, params, v):
    if self._scales_input(site):
      rows = jnp.reshape(v["scale"], (*site.fan_in, *(1,) * len(site.fan_out)))
      return {**params, "kernel": params["kernel"] * rows.astype(params["kernel"].dtype)}
    return {name: p * along(v["scale"], p, len(site.fan_out)) for name, p in params.items()}

  def call(self, site, v, params, layer, x, rng):
    if self._scales_input(site):
      return layer(params, x * along(v["scale"], x, len(site.fan_in)))
    y = layer(params, x)
    return y * along(v["scale"], y, len(site.fan_out))
