"""Scopes: which of the backbone's own parameters are trained; no variables of their own.

Start: equal to the backbone: what is trained are its own parameters.
Merge: nothing to fold.
"""

from __future__ import annotations

import dataclasses
import re

from peft_jax.method import Method
from peft_jax.sites import NORM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full(Method):
  """Full fine-tuning: every parameter.

      y = f(x; W)        W: all

  Source: the baseline of every paper; "end2end" in VPT's code.
  Where: everywhere on a ViT, a Swin or a ConvNeXt, tables of positions included.
  Count: the backbone, which is the 100 % of the papers' tables.
  Cost: the gradients of all weights, and an optimizer state of twice their size.
  Releases: VPT's code trains with the backbone's own dropout of 0.1; the models here have none. It
    leaves out MoCo v3's fixed table of positions.
  """

  def trains(self, table, paths):
    return frozenset(paths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Method):
  """Linear probing: nothing but the head.

      logits = x W + b        x: the frozen features, D wide

  Source: the baseline of every paper; "linear" in VPT's code.
  Where: the head of a ViT, a Swin or a ConvNeXt.
  Count: (D + 1) classes, all in the head.
  Cost: a forward pass; no gradient enters the backbone.
  Releases: SSF's code picks parameters by the name "head.", and so trains a ConvNeXt's last norm as
    well; here it is frozen.
  """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partial(Method):
  """Partial-k: what the model runs from its k-th last block on, up to the head.

      f = norm . block_L . ... . block_1        trained: norm and the last k of L blocks

  Source: a baseline of VPT, Jia et al. 2022, arXiv:2203.12119, and its code.
  Where: the last k modules named blocks_0, blocks_1, ..., in the order in which they run, and what
    runs after the first of them. ViT: k blocks and the norm. Swin, ConvNeXt: stages are counted
    through; k = 2 on Swin-B is the last stage and the norm, k = 4 these, the merging before them
    and two blocks of the third stage.
  Count: 12 D^2 + 13 D in a block of a ViT, 2 D in its norm. ViT-B/16: k = 1 7,089,408, k = 2
    14,177,280, k = 4 28,353,024.
  Cost: no gradient enters what runs before.
  Releases: VPT's code calls k = 1 on a ConvNeXt partial-0.

  k: number of blocks, from 1 to all; ValueError for more, and under a scan.
  """

  k: int = 1

  def trains(self, table, paths):
    block_of = blocks_of(table)
    blocks = list(dict.fromkeys(block_of.values()))
    if scanned := next((p for p in block_of or table if table[p].stack), None):
      raise ValueError(f"Partial: a scan holds all blocks at one path, such as {scanned!r}, where "
                       "none can be trained alone: take loop='python' or 'remat'.")
    if not 1 <= self.k <= len(blocks):
      raise ValueError(f"Partial(k={self.k}): the model has {len(blocks)} modules named blocks_0, "
                       "blocks_1, ...; k counts them from the last one, from 1 on.")
    first = next(p for p in block_of if block_of[p] == blocks[-self.k])
    late = list(table)[list(table).index(first):]
    # A module is in the table once it has run: those around the blocks come late, too.
    around = {p for p in late if any(block.startswith(f"{p}/" if p else "") for block in blocks)}
    inside = tuple(f"{p}/" for p in late if p not in around)
    return frozenset(path for path in paths if path.startswith(inside))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bias(Method):
  """Bias tuning: every bias of the backbone.

      y = x W + b        b alone

  Source: BitFit, Zaken et al. 2022, arXiv:2106.10199; "tinytl-bias" in VPT's code.
  Where: the linear layers, convolutions and norms of a ViT, a Swin or a ConvNeXt.
  Count: the outputs of every layer with a bias: 102,912 on ViT-B/16, 83,712 without the norms'.
  Cost: the gradients of all activations, of no product's weights.
  Releases: VPT's code takes a Swin's tables of relative positions for biases by their name:
    `rel_pos`, 200,760 on Swin-B. On a ConvNeXt it leaves out the last norm (129,280 on ConvNeXt-B)
    and never updates the others, as its trunk runs without gradients: no option does.

  norms: the biases of norms, too.
  rel_pos: a Swin's tables of relative positions, too.
  """

  norms: bool = True
  rel_pos: bool = False

  def trains(self, table, paths):
    names = {"bias", "rel_pos"} if self.rel_pos else {"bias"}
    left_out = frozenset() if self.norms else norm_paths(table)
    return frozenset(path for path in paths if path.rpartition("/")[2] in names) - left_out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm(Method):
  """Norm tuning: scale and bias of every normalisation layer.

      y = scale * (x - mean) / std + bias        scale and bias alone

  Source: LN-tune in V-PETL Bench.
  Where: every norm of a ViT, a Swin or a ConvNeXt, found by module type.
  Count: twice the channels of every norm: 25 * 2 * 768 = 38,400 on ViT-B/16.
  Cost: the gradients of all activations, of no product's weights.
  Releases: V-PETL Bench picks parameters by the name "norm", which misses those that timm numbers
    (a ConvNeXt's at the stem and between its stages).
  """

  def trains(self, table, paths):
    return norm_paths(table) & paths


def norm_paths(table):
  """The flat paths in `params` of every normalisation layer's parameters."""
  return frozenset(
    f"{path}/{name}"
    for path, site in table.items()
    if issubclass(site.kind, NORM)
    for name, _ in site.params
  )


def blocks_of(table):
  """{path: path of its block} of all that lies in modules named blocks_0, blocks_1, ...; the blocks
  come in the order in which they run, through all stages."""
  found = {path: re.match(r"(.*?/)?blocks_\d+(?=/|$)", path) for path in table}
  return {path: match[0] for path, match in found.items() if match}
