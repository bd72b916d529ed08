"""LoRA: a low-rank addition to a linear layer or a convolution.

    y = x W + b  ->  x W + b + s (x A) B        s = alpha / rank, or alpha / sqrt(rank)

Source: Hu et al. 2022, arXiv:2106.09685, section 4.1.
Start: B is zero, so the tuned model starts equal to the backbone.
Merge: W' = W + s A B; b stays.
Where: every linear layer and every convolution that is not grouped. On a convolution A is a
  convolution to `rank` channels and B a product. Grouped and depthwise ones, a ConvNeXt's `dwconv`,
  are left out; a pattern or a path that asks for one is a ValueError.
Count: rank (inputs + outputs) at a site; a convolution of k x k has k^2 channels inputs.
  LoRA-k on a fused qkv is 3,072 k a block of ViT-B/16: k = 8 294,912, k = 16 589,824.
Cost: rank 8 adds 1.5 % to a ViT-B/16's forward pass until it is merged.
Releases: NOAH's and SPT's LoRA-k is `sites` ".*/attn/(q|k|v)", `share` ("q", "k", "v"), alpha =
  rank, `dropout` 0.1 and `initial` "trunc_normal_both": their code overwrites the start they
  declare. SPT's own LoRA draws one mask for q, k and v, none at `proj`, and has stochastic depth of
  its own: not here. V-PETL Bench's starts both factors of v at zero, where they stay: no option.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from peft_jax.method import Method
from peft_jax.methods import patterns
from peft_jax.methods.axes import narrowed, tokens
from peft_jax.methods.dropout import check_rate, dropped
from peft_jax.methods.fitting import fitting
from peft_jax.tree import flat, nest

INITIAL = ("default", "gaussian", "trunc_normal_both")
GROUPED = "a grouped convolution, whose outputs have no inputs in common"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(Method):
  """Low-rank addition at the linear layers `sites` selects.

  Variables at a site whose kernel has shape fan_in + fan_out:
    a: fan_in + (rank,)    uniform in +-1/sqrt(prod(fan_in)), as in HF PEFT
    b: (rank,) + fan_out   zeros

  rank: width of the bottleneck, 1 or more; ValueError where a kernel has no such rank.
  alpha: numerator of s; alpha = rank gives s = 1.
  rslora: s = alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732).
  rank_pattern, alpha_pattern: "regex=number" entries for sites of another rank or alpha, found by
    the end of their paths as HF PEFT finds them: ("fc[12]=4", "blocks_0/.*=16"); the first that
    fits a site counts, and one that fits none is a ValueError. A scanned model has one path, hence
    one rank and alpha, for all blocks.
  initial: "default"; "gaussian", a ~ N(0, 1/rank^2), PEFT's option of that name; or
    "trunc_normal_both", a and b ~ N(0, 0.02^2) (cut at +-2, a hundred deviations): such a model
    does NOT start equal to the backbone.
  dropout: probability of dropping an entry of x on the low-rank path, in [0, 1); needs the "tuning"
    rng stream, so a call without it (evaluation) is deterministic and equal to the merged model.
    Each layer draws its own mask, also under `share`. No effect below a method that is only a
    change of weights, which folds this one in.
  share: names of sibling layers that use one A, held at the first: ("q", "k", "v") is LoRA on
    a fused qkv layer. They need one rank, not one alpha.
  """

  collection: str = "lora"
  rank: int = 8
  alpha: float = 8.0
  rslora: bool = False
  rank_pattern: tuple[str, ...] = ()
  alpha_pattern: tuple[str, ...] = ()
  initial: str = "default"
  dropout: float = 0.0
  share: tuple[str, ...] = ()

  def __post_init__(self):
    name = type(self).__name__
    if self.rank < 1:
      raise ValueError(f"{name}: rank={self.rank}; it must be at least 1.")
    check_rate(self, self.dropout)
    if self.initial not in INITIAL:
      raise ValueError(f"{name}: initial={self.initial!r}; it must be one of {INITIAL}.")
    patterns.check(name, "rank_pattern", self.rank_pattern, int)
    patterns.check(name, "alpha_pattern", self.alpha_pattern, float)

  def rank_at(self, path):
    """The rank of the site at a module path."""
    return int(patterns.at(path, self.rank_pattern, self.rank))

  def scale_at(self, path):
    """s of the site at a module path."""
    alpha, rank = float(patterns.at(path, self.alpha_pattern, self.alpha)), self.rank_at(path)
    return alpha / (math.sqrt(rank) if self.rslora else rank)

  def bind(self, table, chosen):
    name, chosen = type(self).__name__, fitting(self, chosen, _is_grouped, GROUPED)
    patterns.check_used(name, "rank_pattern", self.rank_pattern, chosen)
    patterns.check_used(name, "alpha_pattern", self.alpha_pattern, chosen)
    for path, site in chosen.items():
      rank, size = self.rank_at(path), min(math.prod(site.fan_in), math.prod(site.fan_out))
      if rank > size:
        raise ValueError(
          f"{name}: rank={rank} at {path}, whose kernel {site.fan_in} -> {site.fan_out} has "
          f"rank at most {size}; choose a smaller rank or fewer sites."
        )
      self._check_shared(path, chosen)
    if self.share and not any(path.rpartition("/")[2] in self.share for path in chosen):
      raise ValueError(
        f"{name}: share={self.share} names none of the selected layers, such as "
        f"{next(iter(chosen))}."
      )
    return self

  def _check_shared(self, path, chosen):
    parent, slash, layer = path.rpartition("/")
    if layer not in self.share:
      return
    for sibling in (f"{parent}{slash}{other}" for other in self.share):
      ties = f"{type(self).__name__}: share={self.share} ties {path} to"
      if sibling not in chosen:
        raise ValueError(
          f"{ties} {sibling}, which `sites` does not select; select all of them or shorten `share`."
        )
      if chosen[sibling].fan_in != chosen[path].fan_in:
        raise ValueError(
          f"{ties} a layer with other inputs; tie layers that read the same features."
        )
      if self.rank_at(sibling) != self.rank_at(path):
        raise ValueError(
          f"{ties} {sibling}, but rank_pattern gives them ranks {self.rank_at(path)} and "
          f"{self.rank_at(sibling)}; one A has one rank."
        )

  def init(self, site, key, params):
    if _is_grouped(site):
      return {}
    rank = self.rank_at(site.path)
    variables = {"b": jnp.zeros((rank, *site.fan_out))}
    if self.initial == "trunc_normal_both":
      key, key_b = jax.random.split(key)
      variables["b"] = 0.02 * jax.random.normal(key_b, (rank, *site.fan_out))
    if site.path.rpartition("/")[2] not in self.share[1:]:
      variables["a"] = self._a(key, site.fan_in, rank)
    return variables

  def _a(self, key, fan_in, rank):
    if self.initial == "default":
      bound = math.prod(fan_in) ** -0.5
      return jax.random.uniform(key, (*fan_in, rank), minval=-bound, maxval=bound)
    std = 1 / rank if self.initial == "gaussian" else 0.02
    return std * jax.random.normal(key, (*fan_in, rank))

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
    update = self.scale_at(site.path) * jnp.tensordot(v["a"], v["b"], 1)
    return {**params, "kernel": kernel + update.astype(kernel.dtype)}

  def call(self, site, v, params, layer, x, rng):
    y = layer(params, x)
    return y + self.low_rank(site, v, self.dropped(site, x, y, rng), y)

  def dropped(self, site, x, y, rng):
    """x as the low-rank path reads it: tokens [T, inputs] of y's type, but a convolution's map."""
    x = x if site.is_conv else tokens(x, site.fan_in).astype(y.dtype)
    return dropped(x, self.dropout, rng)

  def low_rank(self, site, v, x, y):
    """s (x A) B in the shape and type of y, for an x of `dropped`."""
    if site.is_conv:
      return self._convolved(site, v, x).astype(y.dtype)
    a = jnp.reshape(v["a"], (x.shape[-1], -1)).astype(y.dtype)
    b = jnp.reshape(v["b"], (a.shape[-1], -1)).astype(y.dtype)
    return jnp.reshape((self.scale_at(site.path) * narrowed(x, a)) @ b, y.shape)

  def _convolved(self, site, v, x):
    """The site's convolution of x with the kernel s A B, as A's followed by a product with B."""
    conv = site.module.clone(features=v["a"].shape[-1], use_bias=False)
    low = conv.apply({"params": {"kernel": v["a"]}}, x)
    return self.scale_at(site.path) * low @ v["b"].astype(low.dtype)


def _is_grouped(site):
  return site.groups > 1
