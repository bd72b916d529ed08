"""LoRA: a low-rank addition to a linear layer.

    y = x W + b  ->  x W + b + s (x A) B        s = alpha / rank

Hu et al. 2022, arXiv:2106.09685, section 4.1. B starts at zero, so the tuned model starts
equal to the backbone. Merging: W' = W + s A B.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from peft_jax.method import Method
from peft_jax.methods.axes import tokens
from peft_jax.tree import flat, nest


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(Method):
  """Low-rank addition at the linear layers `sites` selects.

  Variables at a site whose kernel has shape fan_in + fan_out:
    a: fan_in + (rank,)    uniform in +-1/sqrt(prod(fan_in)), as in HF PEFT
    b: (rank,) + fan_out   zeros

  rank: width of the bottleneck; at most min(prod(fan_in), prod(fan_out)), else ValueError.
  alpha: numerator of s; alpha = rank gives s = 1.
  dropout: probability of dropping an entry of x on the low-rank path; needs the "tuning" rng
    stream, so a call without it (evaluation) is deterministic and equal to the merged model. Each
    layer draws its own mask, also under `share`. No effect below a method that is only a change
    of weights, which folds this one in.
  share: names of sibling layers that use one A, held at the first: ("q", "k", "v") is LoRA on
    a fused qkv layer (rank 8 on ViT-B/16: 294,912 variables).

  On a convolution A is a convolution to `rank` channels and B a product; on a grouped one s A B is
  formed and convolved.
  """

  collection: str = "lora"
  rank: int = 8
  alpha: float = 8.0
  dropout: float = 0.0
  share: tuple[str, ...] = ()

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f"LoRA: rank={self.rank}; it must be at least 1.")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"LoRA: dropout={self.dropout}; it must lie in [0, 1).")

  def bind(self, table, chosen):
    for path, site in chosen.items():
      size = min(math.prod(site.fan_in), math.prod(site.fan_out))
      if self.rank > size:
        raise ValueError(
          f"LoRA: rank={self.rank} at {path}, whose kernel {site.fan_in} -> {site.fan_out} has "
          f"rank at most {size}; choose a smaller rank or fewer sites."
        )
      parent, slash, name = path.rpartition("/")
      siblings = [f"{parent}{slash}{sibling}" for sibling in self.share]
      missing = [sibling for sibling in siblings if sibling not in chosen]
      if name in self.share and missing:
        raise ValueError(
          f"LoRA: share={self.share} ties {path} to {missing[0]}, which `sites` does not select; "
          "select all of them or shorten `share`."
        )
      if name in self.share and any(chosen[s].fan_in != site.fan_in for s in siblings):
        raise ValueError(
          f"LoRA: share={self.share} ties {path} to a layer with other inputs; tie layers that "
          "read the same features."
        )
    if self.share and not any(path.rpartition("/")[2] in self.share for path in chosen):
      raise ValueError(
        f"LoRA: share={self.share} names none of the selected layers, such as {next(iter(chosen))}."
      )
    return self

  def init(self, site, key, params):
    variables = {"b": jnp.zeros((self.rank, *site.fan_out))}
    if site.path.rpartition("/")[2] not in self.share[1:]:
      bound = math.prod(site.fan_in) ** -0.5
      shape = (*site.fan_in, self.rank)
      variables["a"] = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    return variables

  def derive(self, tree, table):
    if not self.share:
      return tree
    leaves = flat(tree)
    for path in list(leaves):
      site, _, name = path.rpartition("/")
      parent, _, layer = site.rpartition("/")
      if name == "b" and layer in self.share[1:]:
        leaves[f"{site}/a"] = leaves[f"{parent}/{self.share[0]}/a".lstrip("/")]
    return nest(leaves)

  def weights(self, site, params, v):
    kernel = params["kernel"]
    update = self.alpha / self.rank * jnp.tensordot(v["a"], v["b"], 1)
    return {**params, "kernel": kernel + update.astype(kernel.dtype)}

  def call(self, site, v, params, layer, x, rng):
    y = layer(params, x)
    if site.is_conv:
      return y + self._convolved(site, v, _dropped(x, self.dropout, rng)).astype(y.dtype)
    a = jnp.reshape(v["a"], (-1, self.rank)).astype(y.dtype)
    b = jnp.reshape(v["b"], (self.rank, -1)).astype(y.dtype)
    # Its gradient is then formed as [rank, inputs], which XLA does 8 times faster on CPU than as
    # [inputs, rank]; the barrier keeps XLA from turning it around again.
    a = jax.lax.optimization_barrier(a.T)
    low = _dropped(tokens(x, site.fan_in).astype(y.dtype), self.dropout, rng) @ a.T
    return y + jnp.reshape((self.alpha / self.rank * low) @ b, y.shape)

  def _convolved(self, site, v, x):
    """The site's convolution of x with the kernel s A B, as A's followed by a product with B."""
    scale = self.alpha / self.rank
    if site.groups > 1:  # each group's outputs would need an A of their own
      conv = site.module.clone(use_bias=False)
      return conv.apply({"params": {"kernel": scale * jnp.tensordot(v["a"], v["b"], 1)}}, x)
    conv = site.module.clone(features=self.rank, use_bias=False)
    low = conv.apply({"params": {"kernel": v["a"]}}, x)
    return scale * low @ v["b"].astype(low.dtype)


def _dropped(x, rate, rng):
  """x with entries dropped at `rate` and the rest scaled up; x itself without a key."""
  if rng is None or not rate:
    return x
  keep = jax.random.bernoulli(rng, 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
