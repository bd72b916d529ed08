"""SSF: scale and shift the features after every operation.

    y -> scale * y + shift        per channel, the last axis

Lian et al. 2022, arXiv:2210.08823, section 3.2. Initial values are N(1, 0.02^2) and
N(0, 0.02^2), so a tuned model does NOT start equal to the backbone. Merging: the scale goes
into the output axis of the kernel (or the norm's scale), b' = scale * b + shift.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from peft_jax.method import Method
from peft_jax.methods.axes import along
from peft_jax.sites import LINEAR, NORM


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSF(Method):
  """A scale and a shift after every linear layer, convolution and norm that `sites` selects.

  Variables at a site with output features fan_out: scale, shift: fan_out.
  ViT-B/16, all sites: 205,824 variables, as 74 pairs with a fused qkv.
  The gradient of the shift on a key layer is zero by mathematics: it adds the same number to
  all logits of a query, which softmax ignores.
  """

  kinds: ClassVar[tuple[type, ...]] = LINEAR + NORM

  collection: str = "ssf"

  def init(self, site, key, params):
    scale, shift = jax.random.normal(key, (2, *site.fan_out))
    return {"scale": 1 + 0.02 * scale, "shift": 0.02 * shift}

  def weights(self, site, params, v):
    """A site without bias, or a norm without scale, gains one: the engine refuses to fold it."""
    gain = "kernel" if "kernel" in params else "scale"
    axes = len(site.fan_out)
    new = dict(params)
    new[gain] = v["scale"]
    if gain in params:
      new[gain] = params[gain] * along(v["scale"], params[gain], axes)
    shift = v["shift"]
    if "bias" in params:
      shift = shift.astype(params["bias"].dtype)
      shift = shift + params["bias"] * v["scale"].astype(params["bias"].dtype)
    return {**new, "bias": shift}

  def call(self, site, v, params, layer, x, rng):
    y = layer(params, x)
    axes = len(site.fan_out)
    return y * along(v["scale"], y, axes) + along(v["shift"], y, axes)
