"""SPT: where a task's gradient is largest, modules, whole vectors and single weights are trained.

    y = x W' + b'        W'[i, j] = W[i, j] + value[n] where index[n] = (i, j), else W[i, j]
                         and a module beside W in place of single entries, where they are many

Source: He et al. 2023, "Sensitivity-aware visual parameter-efficient fine-tuning", ICCV,
  arXiv:2303.08566, sections 3.1 and 3.2; thresholds, vectors and sweep of the released code.
Start: single entries start as the backbone's own; so does the tuned model, where what is placed
  does, as LoRA and Adapter do by default.
Merge: W' = W + value at its places; what is placed merges as it does alone, LoRA and DoRA do.
Where: the kernels of q, k, v, proj, fc1, fc2 of the blocks may be given a module; their biases,
  norms and layer scales are trained whole or in part; the class token is trained. What comes before
  the blocks and the table of positions are not. Our reading for other backbones: a Swin's
  reductions and tables of relative positions and a ConvNeXt's other convolutions have single
  entries only.
Count: near `budget`; the nearest that a sweep finds, above or below. ViT-B/16 has 85,056,000 to
  choose from; at most 1,449,216 with LoRA of rank 8, 1,532,736 with adapters of width 8.
Cost: that of the modules, and in a step 2 T operations for a single entry and T tokens. The choice
  takes one gradient of each of 800 images.
Releases: the defaults, but for these. The code scores the first 512 images of train800, unshuffled,
  with drop path 0.1 (`num_samples`, `drop_path`); here 800 as in the paper, drawn by the seed, and
  without. Its groups of 32 are not those of one that the paper's Algorithm 1 has (`group_size` 1),
  its `alpha` 10 is not the paper's rule (1). It counts the entries inside norms but does not train
  them (`norm_entries` False). It writes adapters by what LoRA would cost, though files of their own
  cost came with it; here by their own. Its modules have stochastic depth, not here; LoRA, Adapter
  tell what else differs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from peft_jax.methods.entries import Entries

SCORES = ("squares", "fisher", "magnitude", "random", "file")
PLACED = ("lora", "dora", "adapter", "vpt")
LEAST = {"budget": 0, "tau": 0, "alpha": 0, "beta": 0, "num_samples": 1, "group_size": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SPT(Entries):
  """Single entries, whole vectors and the class token; in front of the method that is placed.

  Variables at a site with n chosen entries of its kernel, or of another leaf NAME:
    value: (n,)        trained, zeros: what is added to the kernel's entries, or (`delta` False) the
                       entries themselves; no weight decay
    index: (n,)        int32, frozen: their flat places in the kernel; the first n until filled
    NAME_index: (n,)   int32, frozen: flat places in the leaf, which is trained at these alone

  In `methods`, lora, dora, adapter or vpt right behind spt is what is placed: with its own options,
  at those of its sites that get it. Without one of them, entries and vectors alone are trained.
  Prompts stand for the matrices of a block's `attn`. What is placed must decide for each site alone
  (LoRA's `share` does not). Not under a scan.

  sites: to be left as it is: what may be chosen does not depend on it.
  budget: numbers trained, the class token among them and the head not; below 1 a share of the
    backbone's.
  tau: how many of the largest scores are chosen, above 0, instead of the sweep that finds `budget`.
  alpha: a module may cost this many times the entries it replaces; 0 places none.
  beta: a vector is whole where a 1/beta of it is among the chosen; 0 takes none whole.
  unstructured: whether single entries are trained.
  norm_entries: whether the single entries chosen inside norms are trained; they count all the same.
  num_samples: training images that are scored, drawn by the seed; all where there are fewer.
  group_size: images whose mean gradient is squared.
  score: "squares", the sum of squared gradients of the cross-entropy of a random head; "fisher",
    the same with labels drawn from what the model says; "magnitude", |W|; "random"; or "file",
    |what `scores` holds|.
  scores: that safetensors file: an array for each leaf that may be chosen from, under its path in
    `params`, such as encoder/blocks_0/attn/q/kernel.
  drop_path: rate of the last block while scoring.
  tokens: whether the class token is trained.
  form: "entries" forms the gradient of the single entries alone, "kernel" that of the whole kernel
    and takes them from it, "auto" the former in linear layers with up to a 40th of it. These write
    into a copy of the kernel; "product" adds x times the values, but in convolutions. "mask", with
    delta False, trains the kernels themselves and masks their updates.
  delta: whether `value` is what is added to an entry, or the entry itself.
  chosen: filled by the choice: "leaf path=n" for a leaf with n > 0 single entries; None before it.
  whole: filled by the choice: leaf paths of the vectors trained whole.
  """

  kinds: ClassVar[tuple[type, ...]] = (nn.Module,)
  chooses: ClassVar[bool] = True

  collection: str = "spt"
  delta: bool = True
  budget: float = 400_000.0
  tau: int = 0
  alpha: float = 10.0
  beta: float = 5.0
  unstructured: bool = True
  norm_entries: bool = True
  num_samples: int = 800
  group_size: int = 32
  score: str = "squares"
  scores: str = ""
  drop_path: float = 0.0
  tokens: bool = True
  chosen: tuple[str, ...] | None = None
  whole: tuple[str, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    for name, least in LEAST.items():
      if not least <= getattr(self, name) < math.inf:
        raise ValueError(f"SPT: {name}={getattr(self, name)}; it must be at least {least}.")
    if not 0 <= self.drop_path < 1:
      raise ValueError(f"SPT: drop_path={self.drop_path} is outside [0, 1).")
    if self.score not in SCORES:
      raise ValueError(f"SPT: score={self.score!r}; it must be one of {SCORES}.")
    if self.scores and self.score != "file":
      raise ValueError(f"SPT: scores={self.scores!r} is given, but score={self.score!r}: take "
                       "score='file'.")
    for name in ("chosen", "whole"):
      if not isinstance(getattr(self, name), (tuple, type(None))):
        raise ValueError(f"SPT: {name}={getattr(self, name)!r} is no tuple.")
    for text in self.chosen or ():
      path, _, n = str(text).rpartition("=")
      if not path or not n.isdecimal() or not int(n):
        raise ValueError(f"SPT: chosen has {text!r}, which is not of the form leaf path=n, such as "
                         "'norm/scale=3'.")

  @functools.cached_property
  def sizes(self):
    """{leaf path: number of its single entries}."""
    parts = (text.rpartition("=") for text in self.chosen or ())
    return {path: int(n) for path, _, n in parts}

  def bind(self, table, chosen):
    if self.chosen is None:
      raise ValueError(
        "SPT: what it trains depends on the weights and the task: choose it first "
        "(train.py does so, and python -m peft_jax select)."
      )
    leaves = {f"{path}/{name}": math.prod(shape) for path, site in table.items()
              for name, shape in site.params if not site.stack}
    for path, n in [*self.sizes.items(), *((path, 1) for path in self.whole)]:
      if n > leaves.get(path, 0):
        there = f"{leaves[path]} entries there" if path in leaves else "no such leaf"
        raise ValueError(f"SPT: {n} entries of {path!r} are to be trained, but this model has "
                         f"{there}; it was chosen for another model.")
    return self

  def init(self, site, key, params):
    made = {}
    for name, shape in site.params:
      if n := self.sizes.get(f"{site.path}/{name}"):
        index, kernel = jnp.arange(n, dtype=jnp.int32), params.get(name, jnp.zeros(shape))
        made |= self.variables(kernel, index) if name == "kernel" else {f"{name}_index": index}
    return made

  def trains(self, table, paths):
    tokens = {path for path in paths if path.rpartition("/")[2] == "cls_token"}
    return frozenset({*self.whole, *(tokens if self.tokens else ())} & paths)


def behind(names, methods):
  """(name, method) of what an SPT among the methods places; ("", None) for nothing.

  Raises ValueError where what stands behind it has variables, but cannot be placed.
  """
  following = dict(zip(names, zip(names[1:], methods[1:], strict=True), strict=False))
  name, method = following.get("spt", ("", None))
  if method is None or not method.collection:
    return "", None
  if name not in PLACED:
    raise ValueError(f"SPT places the method behind it, one of {', '.join(PLACED)}, not {name}: "
                     f"put {name} in front of spt.")
  return name, method
