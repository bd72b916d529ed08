"""GPS: of every neuron, the K input connections that a task's gradient names, trained in place.

    y = x W' + b        W'[i, j] = value[k, j] where i = index[k, j], else W[i, j]

Source: Zhang et al. 2024, "Gradient-based parameter selection for efficient fine-tuning", CVPR,
  arXiv:2312.10136, sections 3.1 to 3.3.
Start: the chosen entries are the kernel's own, so the tuned model starts equal to the backbone.
Merge: the values are written into the kernels.
Where: every linear layer and convolution of a ViT, a Swin or a ConvNeXt; a neuron is an output
  channel. Which entries they are is chosen before training, from the task's images: train.py does
  so and keeps the choice in selection.safetensors; elsewhere `peft_jax.selection.places.choose`.
Count: k a neuron, and the biases. ViT-B/16 at k = 1, 2, 3: 167,424, 251,136, 334,848; each k adds
  83,712 (Swin-B and ConvNeXt-B 110,208).
Cost: in a step 2 T k fan_out operations a layer, where full tuning takes 2 T fan_in fan_out;
  convolutions take the gradient of the whole kernel. None once merged. The choice is one epoch of
  gradients of two views of each image, one view in memory at a time: 1.17 times the operations of
  gradients of both together, and less memory than a step of full tuning.
Releases: the code trains all biases of linear layers and convolutions, a Swin's tables of relative
  positions and a ConvNeXt's layer scale, which the paper does not mention, and freezes norms, class
  token and tables of positions: the defaults. It scores in half precision and with the run's drop
  path on; here in float32, and with `drop_path`, which the recipes set. It applies its mask only
  under --amp and trains everything without: here it always holds. "Neuron Random" is `score`
  "random"; the code gives the neurons each other's inputs instead: `row_permutation`. Its code for
  skipping blocks also skips the patch embedding and, by the prefix of a name, blocks 10 and 11
  along with 1: `skip` means the blocks it names.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import ClassVar

import jax
import jax.numpy as jnp

from peft_jax.methods import patterns, sparse
from peft_jax.methods.entries import Entries
from peft_jax.methods.scope import blocks_of, norm_paths
from peft_jax.selection import top

LEVELS = ("neuron", "shared", "layer", "net", "channel", "matrix")
SCORES = ("contrast", "cross_entropy", "squares", "fisher", "magnitude", "random", "file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPS(Entries):
  """Chosen entries of the kernels of linear layers and convolutions, and all their biases.

  Variables at a site whose kernel has shape fan_in + fan_out:
    value: (k,) + fan_out   trained; of a level that is no row of inputs (1, n)
    index: the same shape   int32, frozen: flat places in the kernel

  NeuroAda (arXiv:2510.18940) is GPS(score="magnitude", delta=True, biases=False, rel_pos=False,
  layer_scale=False) on a backbone that its paper does not have: no images, k * fan_out a layer.

  "magnitude" and "random" per neuron or shared need no images and are chosen by `init`; for other
  scores `init` leaves NaN (in the mask form places of -1, which train nothing), until
  `peft_jax.selection.places.choose` has filled it. Below it other methods are folded into the
  weights; above it they cost what they do alone.

  k: inputs of each neuron, 1 or more; a layer with fewer has all of them trained. Other levels have
    as many entries as that makes of the layer, or of all layers: their budget.
  level: "neuron"; "shared", the inputs of a layer that most neurons would choose, for all of them
    (NeuroAda's `appr`); "layer", a layer's largest (q, k and v are one); "net", the largest of all;
    "channel" and "matrix", whole output channels or kernels with the largest mean score of all, as
    long as they fit into the budget. Under a scan "neuron" or "shared".
  score: "contrast", |sum of gradients| of the supervised contrastive loss of two views;
    "cross_entropy", that of the cross-entropy of a random head; "squares", the sum of its squared
    gradients, and "fisher", the same with labels drawn from what the model says, as SPT has them;
    "magnitude", |W|; "random"; or "file", |what `scores` holds|.
  scores: that safetensors file: a floating point array for each kernel, of its shape, under its
    path in `params`, such as encoder/blocks_0/attn/q/kernel; "" where `choose` is given them.
  temperature: of the contrastive loss, above 0.
  num_samples, group_size: of "squares" and "fisher": training images that are scored, drawn by the
    seed, and those whose mean gradient is squared.
  drop_path: rate of the last block while scoring.
  row_permutation: whether every neuron gets what was chosen for another one of its layer, drawn
    from the seed; per neuron only.
  skip: blocks from which no weight is chosen, counted from 0 as they run, through all stages.
  skip_biases: whether the others of their parameters (biases, tables, layer scale) rest, too.
  biases: whether the biases of linear layers and convolutions are trained.
  rel_pos: whether a Swin's tables of relative positions are.
  layer_scale: whether the layer scale of a ViT or a ConvNeXt is.
  norms: whether scale and bias of all norms are.
  form: "entries" forms the gradient of the chosen entries alone, "kernel" that of the whole kernel
    and takes them from it, "auto" the former in linear layers with up to a 40th of it chosen, and
    for shared inputs; "mask" trains the kernels themselves and masks their updates: the same
    training, at the cost of full tuning, above no method that changes weights.
    These write into a copy of the kernel; "product" adds x times what the entries changed by, but
    in convolutions, so that under a vmap over runs all share their kernels.
  delta: whether `value` is what is added to the entry, starting at zero, and not the entry: weight
    decay then pulls to the backbone's entry, not to zero.
  chosen: of a choice by budget, filled by it: "path=n" for a kernel with n > 0 entries.
  """

  chooses: ClassVar[bool] = True

  collection: str = "gps"
  k: int = 1
  level: str = "neuron"
  score: str = "contrast"
  scores: str = ""
  temperature: float = 0.07
  num_samples: int = 800
  group_size: int = 32
  drop_path: float = 0.0
  row_permutation: bool = False
  skip: tuple[int, ...] = ()
  skip_biases: bool = False
  biases: bool = True
  rel_pos: bool = True
  layer_scale: bool = True
  norms: bool = False
  chosen: tuple[str, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    for name in ("k", "num_samples", "group_size"):
      if getattr(self, name) < 1:
        raise ValueError(f"GPS: {name}={getattr(self, name)}; it must be at least 1.")
    if not self.temperature > 0:
      raise ValueError(f"GPS: temperature={self.temperature}; it must be positive.")
    for name, values in {"level": LEVELS, "score": SCORES}.items():
      if getattr(self, name) not in values:
        raise ValueError(f"GPS: {name}={getattr(self, name)!r}; it must be one of {values}.")
    if not 0 <= self.drop_path < 1:
      raise ValueError(f"GPS: drop_path={self.drop_path} is outside [0, 1).")
    if self.scores and self.score != "file":
      raise ValueError(f"GPS: scores={self.scores!r} is given, but score={self.score!r}: take "
                       "score='file'.")
    if self.row_permutation and self.level != "neuron":
      raise ValueError(f"GPS: row_permutation acts on what each neuron has, not on level="
                       f"{self.level!r}: take level='neuron'.")
    if not isinstance(self.skip, tuple) or not all(type(i) is int for i in self.skip):
      raise ValueError(f"GPS: skip={self.skip!r} is no tuple of whole numbers, such as (0, 1).")
    patterns.check("GPS", "chosen", self.chosen, int)

  def bind(self, table, chosen):
    kept = self.kept(table, chosen)
    if self.level not in top.ROWS and not self.chosen:
      raise ValueError(
        f"GPS: what level={self.level!r} trains depends on the weights and the task: choose it "
        "first (peft_jax.selection.places.choose; train.py does so)."
      )
    patterns.check_used("GPS", "chosen", self.chosen, kept)
    return dataclasses.replace(self, sites=tuple(kept)) if self.skip else self

  def kept(self, table, chosen):
    """Those of the `chosen` sites, {path: Site}, that lie outside the blocks `skip`."""
    scanned = next((path for path, site in chosen.items() if site.stack), None)
    if scanned and (self.skip or self.level not in top.ROWS):
      asked = f"skip={self.skip}" if self.skip else f"level={self.level!r}"
      raise ValueError(f"GPS: a scan holds the same number of entries for all blocks, such as at "
                       f"{scanned!r}, which {asked} does not give: take model.loop='python' or "
                       "'remat'.")
    skipped = self.skipped(table)
    kept = {path: site for path, site in chosen.items() if not path.startswith(skipped)}
    if not kept:
      raise ValueError(f"GPS: skip={self.skip} leaves none of the {len(chosen)} selected sites; "
                       "skip fewer blocks.")
    return kept

  def skipped(self, table):
    """What the paths inside the blocks `skip` start with."""
    blocks = list(dict.fromkeys(blocks_of(table).values()))
    for i in self.skip:
      if not 0 <= i < len(blocks):
        raise ValueError(f"GPS: skip={self.skip} names block {i}; the model has {len(blocks)} "
                         "blocks, counted from 0 as they run.")
    return tuple(f"{blocks[i]}/" for i in self.skip)

  def entries(self, site):
    """The shape of `value` at a site; None where nothing is chosen."""
    if isinstance(self.sites, tuple) and site.path not in self.sites:
      return None
    if self.level in top.ROWS:
      return (min(self.k, math.prod(site.fan_in)), *site.fan_out)
    parts = (text.rpartition("=") for text in self.chosen)  # of whole paths: `fc` is not `mlp/fc`
    n = next((int(n) for path, _, n in parts if re.fullmatch(path, site.path)), 0)
    return (1, n) if n else None

  def init(self, site, key, params):
    shape = self.entries(site)
    if shape is None:
      return {}
    inputs, outputs = math.prod(site.fan_in), math.prod(site.fan_out)
    kernel = params.get("kernel", jnp.zeros((*site.fan_in, *site.fan_out)))
    needs_images = self.level not in top.ROWS or self.score not in ("magnitude", "random")
    if needs_images or self.row_permutation:
      made = self.variables(kernel, jnp.zeros(shape, jnp.int32))
      if "value" not in made:
        return {"kernel_index": jnp.full(shape, -1, jnp.int32)}
      return {**made, "value": jnp.full(shape, jnp.nan, kernel.dtype)}
    if self.score == "magnitude":
      scores = jnp.reshape(kernel, (inputs, outputs))
    else:
      scores = 1 + jax.random.uniform(key, (inputs, outputs))
    chosen = sparse.places(top.ROWS[self.level](scores, self.k), outputs)
    return self.variables(kernel, jnp.reshape(chosen, shape))

  def rows(self, site):
    return {"neuron": "neuron", "shared": "input"}.get(self.level, "any")

  def trains(self, table, paths):
    norms = norm_paths(table)
    roles = {"bias": self.biases, "rel_pos": self.rel_pos}  # by the name of a parameter
    roles |= dict.fromkeys(("gamma", "ls"), self.layer_scale)
    wanted = {path for path in paths - norms if roles.get(path.rpartition("/")[2])}
    wanted |= norms & paths if self.norms else set()
    resting = self.skipped(table) if self.skip_biases else ()
    return frozenset(path for path in wanted if not path.startswith(resting))
