"""DoRA: a low-rank addition that turns each output feature's weights, and a length of their own.

    W' = m (W + s A B) / |W + s A B|        |.|: over all inputs of an output feature; b stays

Source: Liu et al. 2024, arXiv:2402.09353, equation 5.
Start: m is |W| and B zero, so the tuned model starts equal to the backbone, to the rounding of one
  norm.
Merge: W' for W; b stays.
Where: as LoRA, every linear layer and every convolution that is not grouped: all but a ConvNeXt's
  `dwconv`.
Count: LoRA's, and a magnitude for each output feature: 1,339,392 + 83,712 on ViT-B/16, rank 8.
Cost: LoRA's, and forming W + s A B in every call, 2 rank inputs outputs FLOPs: together 2.3 % of a
  ViT-B/16's forward pass at batch 8, until it is merged.
Releases: the norm counts as a constant in the gradient, as in the paper's section 4.3 and HF PEFT.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from peft_jax.methods.axes import along
from peft_jax.methods.lora import LoRA


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
  """LoRA with a magnitude for each output feature; the options and factors are LoRA's.

  Variables at a site whose kernel has shape fan_in + fan_out, beside LoRA's a and b:
    magnitude: fan_out    the norm of the kernel that `init` is given, which it therefore needs

  dropout: probability of dropping an entry of x on the way to everything that is added to x W + b,
    in [0, 1), as in HF PEFT; the layer then runs twice.
  """

  collection: str = "dora"

  folds_below = True  # the norm is that of the whole kernel, other methods' changes included

  def init(self, site, key, params):
    made = super().init(site, key, params)
    if made and "kernel" not in params:
      raise ValueError(
        f"DoRA: the magnitude at {site.path} starts as the norm of its kernel, which is not known; "
        "give the backbone's parameters, tuned.init(key, params)."
      )
    return {**made, "magnitude": _norm(params["kernel"], site)} if made else {}

  def weights(self, site, params, v):
    new = super().weights(site, params, v)
    gain = _gain(new["kernel"], site, v)
    return {**new, "kernel": new["kernel"] * along(gain, new["kernel"], len(site.fan_out))}

  def call(self, site, v, params, layer, x, rng):
    y = layer(params, x)
    gain, axes = _gain(super().weights(site, params, v)["kernel"], site, v), len(site.fan_out)
    seen = self.dropped(site, x, y, rng)
    if rng is not None and self.dropout:
      bare = {name: p if name == "kernel" else jnp.zeros_like(p) for name, p in params.items()}
      linear = layer(bare, jnp.reshape(seen, x.shape))
    else:
      linear = y - along(params["bias"], y, axes) if "bias" in params else y
    low = self.low_rank(site, v, seen, y)
    return y + along(gain - 1, y, axes) * linear + along(gain, y, axes) * low


def _norm(kernel, site):
  return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=tuple(range(len(site.fan_in)))))


def _gain(kernel, site, v):
  """m / |kernel|; an output feature whose weights are all zero keeps them."""
  norm = _norm(jax.lax.stop_gradient(kernel), site)
  return v["magnitude"] / jnp.where(norm > 0, norm, 1)
