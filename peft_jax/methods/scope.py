"""Scopes: which of the backbone's own parameters are trained; no variables of their own.

Every scope trains the head as well. Parameter counts without the head:

              ViT-B/16      Swin-B  ConvNeXt-B
    full    85,798,656  86,743,224  87,566,464
    partial  7,089,408  12,603,680   8,450,048   k = 1
    bias       102,912     137,216     130,304
    norm        38,400      57,600      40,192

Partial-k as in VPT (Jia et al. 2022, arXiv:2203.12119) and its code. Bias:
BitFit (Zaken et al. 2022, arXiv:2106.10199).
"""

from __future__ import annotations

import dataclasses
import re

from peft_jax.method import Method
from peft_jax.sites import NORM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full(Method):
  """Full fine-tuning: every parameter."""

  def trains(self, table, paths):
    return frozenset(paths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Method):
  """Linear probing: nothing but the head."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partial(Method):
  """Partial-k: what the model runs from its k-th last block on, up to the head.

  On a ViT the last k blocks and the norm after them; on ViT-B/16, for k = 1, 2, 4: 7,089,408,
  14,177,280, 28,353,024. Stages are counted through, and what runs between trained blocks is
  trained: k = 2 on Swin-B is the last stage and the final norm, k = 4 these, the merging before
  them and two blocks of the third stage. VPT's code calls k = 1 on ConvNeXt partial-0.
  Blocks are the modules named blocks_0, blocks_1, ..., in the order in which they run.

  k: number of blocks, 1 or more.
  """

  k: int = 1

  def trains(self, table, paths):
    block_of = {p: m[0] for p in table if (m := re.match(r"(.*?/)?blocks_\d+(?=/|$)", p))}
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

  ConvNeXt-B has 130,304; the 129,280 of VPT's code leave out the final norm's 1,024.

  norms: the biases of norms, too; False leaves 83,712 on ViT-B/16.
  rel_pos: a Swin's tables of relative positions, too, which VPT's code takes for biases by their
    name: 200,760 on Swin-B.
  """

  norms: bool = True
  rel_pos: bool = False

  def trains(self, table, paths):
    names = {"bias", "rel_pos"} if self.rel_pos else {"bias"}
    left_out = frozenset() if self.norms else norm_paths(table)
    return frozenset(path for path in paths if path.rpartition("/")[2] in names) - left_out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm(Method):
  """Norm tuning: scale and bias of every normalisation layer, found by module type."""

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
