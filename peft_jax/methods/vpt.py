"""VPT: learned tokens, prompts, that the layers read beside the image's own.

    deep      x + attn(x)  ->  x + attn(x, T_i)   keys and values of [norm(x), norm(T_i)], block i
    shallow   x            ->  [x, T]             before the first block

Source: Jia et al. 2022, arXiv:2203.12119, sections 3.2 and 3.3; semantics of the released code.
Start: prompts are drawn, so no tuned model starts equal to its backbone.
Merge: none; prompts are no change of weights, and `Tuned.merge` says so.
Where: T_i at the branch `attn` of every block, T once.
  - ViT: T at `encoder`. Prompts have no position: here they stand behind the patches.
  - Swin: every window reads T_i. T enters at the first stage, attends in every window, takes the
    mean over its sample's windows and merges as four equal tokens; drop path acts on it as on the
    patches of its sample.
  - ConvNeXt: deep or not, a frame of pixels around the image, at `stem`.
Count: for p prompts, ViT-B/16 deep 9,216 p, shallow 768 p; Swin-B 12,032 p and 128 p; ConvNeXt at
  224 pixels 12 p (224 + p).
Cost: 50 deep prompts add 1.5 % to a ViT-B/16's forward pass, shallow ones 26.5 %, as they pass
  every layer. A frame enlarges the image: p = 10 adds 14 % on ConvNeXt-B.
Releases: the code overwrites deep prompts before every block, so that nothing reads what a block
  made of them: here that is not computed, and queries and MLP are the image's alone. The numbers
  are the same.
  - The paper's runs: `dropout` 0.1 deep, 0 shallow. The released Swin draws one mask for a batch.
  - The features of a Swin, and of a ViT that takes a mean, include the last prompts there: `pool`
    "official".
  - On a Swin, shallow prompts mix the samples of a batch there: no option does.
  - NOAH draws prompts in another range: `start` "noah".
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from peft_jax.method import Method
from peft_jax.methods.axes import along
from peft_jax.methods.dropout import check_rate, dropped
from peft_jax.methods.wiring import is_stem
from peft_jax.tree import flat, nest


@dataclasses.dataclass(frozen=True, kw_only=True)
class VPT(Method):
  """Prompts for a ViT, a Swin or a ConvNeXt; `sites` can leave them to some of the blocks.

  Variables, for p = length, width C of the stream and images of S pixels:
    tokens: (p, C)        or (p, project); uniform, see `start`
    kernel, bias: (project, C), (C,)   at `encoder`; N(0, 2 / C), uniform in +-1/sqrt(project)
    rows: (2 p, S + 2 p, 3)   of a frame, p above and p below; uniform in 0..1
    columns: (S, 2 p, 3)      of a frame, p left and p right; uniform in 0..1

  length: prompts at a site, 1 or more; of a frame, its pixels on each side (even for patches of 4:
    a stem leaves out what fills no patch, at the right and below).
  deep: other prompts in every block, or one set before the first.
  shared: one set for all blocks, put in anew before each, where deep (an ablation of VPT's); for
    blocks of one width, and not under a scan. ViT-B/16: 768 p.
  dropout: probability of dropping an entry of a prompt, in [0, 1), drawn for each sample and
    insertion from the "tuning" rng stream; not of a frame.
  project: width of a ViT's prompts before a Linear that all share; 0 for none.
  start: of tokens, uniform in +-v: "vpt" has v = sqrt(6 / (3 P^2 + d)), d the width of the first
    prompts and P that of a patch in pixels; "noah" has v = sqrt(6 / (C (p + 1))).
  limit: v itself; None computes it.
  pool: "image"; "official" keeps the last prompts in the stream, which changes the features of a
    Swin and of a ViT with pool="avg", a mean; where deep, not under a scan.
  mean, std: the images' normalisation, which a frame gets, too.

  Beside another method on `attn`, VPT comes first in `methods`. Two VPTs, deep and shallow, go
  together on a ViT only.
  """

  kinds: ClassVar[tuple[type, ...]] = (nn.Module,)

  collection: str = "vpt"
  length: int = 10
  deep: bool = True
  shared: bool = False
  dropout: float = 0.0
  project: int = 0
  start: str = "vpt"
  limit: float | None = None
  pool: str = "image"
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's
  std: tuple[float, ...] = (0.229, 0.224, 0.225)

  def __post_init__(self):
    for name, known in {"start": ("vpt", "noah"), "pool": ("image", "official")}.items():
      if getattr(self, name) not in known:
        raise ValueError(f"VPT: {name}={getattr(self, name)!r}; it must be one of {known}.")
    for name, least in {"length": 1, "project": 0}.items():
      if getattr(self, name) < least:
        raise ValueError(f"VPT: {name}={getattr(self, name)}; it must be at least {least}.")
    check_rate(self, self.dropout)

  def bind(self, table, chosen):
    """The method whose `sites` are those that act, in call order, and whose `limit` is a number."""

    def named(pattern):
      return tuple(path for path in chosen if re.fullmatch(rf"(.*/)?{pattern}", path))

    sites, encoder, stages = named("stem"), named("encoder"), named(r"stages_\d+")
    if not sites and self.deep:
      sites = named("attn")
      if sites and self.pool == "official":  # the last block keeps what it makes of its prompts
        sites = (*sites[:-1], sites[-1].rpartition("/")[0])
    elif not sites:  # a Swin's prompts go in at the first stage and out at the last
      sites = encoder or stages[:1] + stages[1:][-1:] * (self.pool == "image")
    stem = next((site for site in table.values() if is_stem(site)), None)
    if not sites or stem is None or sites[-1] not in chosen:
      lost = sites[-1] if sites else "stem, attn" if self.deep else "stem, encoder, stages_0"
      raise ValueError(
        f"VPT: `sites` selects no {lost}, where prompts would act; '.*' finds their places in a "
        "ViT, Swin or ConvNeXt of peft_jax.models."
      )
    if self.deep and self.pool == "official" and table[sites[-1]].stack:
      raise ValueError(
        "VPT: pool='official' makes the last block another one, and those of a scan are alike: "
        "take loop='python' or 'remat', or pool='image'."
      )
    widths, first = {table[path].x[-1] for path in sites}, table[sites[0]]
    blocks = self.deep and not first.path.endswith("stem")
    if self.shared and (not blocks or len(widths) > 1 or first.stack):
      raise ValueError(
        "VPT: shared=True is for deep prompts of blocks of one width, such as a ViT's, with "
        "loop='python' or 'remat': take shared=False."
      )
    if self.project and not encoder:
      raise ValueError(
        f"VPT: project={self.project} is a layer at a ViT's `encoder`, and `sites` selects none: "
        "take project=0."
      )
    bound = math.sqrt(6 / (3 * stem.fan_in[0] ** 2 + (self.project or stem.fan_out[0])))
    limit = bound if self.limit is None and self.start == "vpt" else self.limit
    return dataclasses.replace(self, sites=sites, limit=limit)

  def init(self, site, key, params):
    p, variables, keys = self.length, {}, jax.random.split(key, 3)
    if self.project and site.path.endswith("encoder"):
      kernel = jax.random.normal(keys[0], (self.project, site.x[-1]))
      variables["kernel"] = kernel * math.sqrt(2 / site.x[-1])
      variables["bias"] = _uniform(keys[1], (site.x[-1],), self.project**-0.5)
    if site.path.endswith("stem") and site.path in self.sites:
      side = site.x[1]
      variables["rows"] = jax.random.uniform(keys[0], (2 * p, side + 2 * p, 3))
      variables["columns"] = jax.random.uniform(keys[1], (side, 2 * p, 3))
    elif site.path in (self.sites if self.deep and not self.shared else self.sites[:1]):
      width = self.project or site.x[-1]
      limit = math.sqrt(6 / (width * (p + 1))) if self.limit is None else self.limit
      variables["tokens"] = _uniform(keys[2], (p, width), limit)
    return variables

  def derive(self, tree, table):
    """Projects the prompts; a site acts where it reads something, hence `end` at a last stage."""
    leaves = flat(tree)
    if self.project:
      kernel, bias = (
        leaves.pop(next(path for path in leaves if path.endswith(f"encoder/{name}")))
        for name in ("kernel", "bias")
      )
      leaves = {path: (y := tokens @ kernel) + along(bias, y) for path, tokens in leaves.items()}
    if self.shared:
      (tokens,) = leaves.values()
      leaves = {f"{path}/tokens": tokens for path in self.sites}
    if not self.deep and len(self.sites) > 1:
      leaves[f"{self.sites[-1]}/end"] = jnp.zeros(())
    return nest(leaves)

  def call(self, site, v, params, layer, x, rng):
    if (isinstance(x, tuple) and "end" not in v) or ("rows" in v and x.shape[1:] != site.x[1:]):
      raise ValueError(
        f"VPT: {site.path} gets prompts from another VPT, too: keep one of them (only on a ViT do "
        "deep and shallow prompts go together)."
      )
    if "rows" in v:
      return layer(params, self._framed(x, v["rows"], v["columns"]))
    if "end" in v:
      return layer(params, x)[0]
    is_branch, tokens = site.path.endswith("attn"), v["tokens"].astype(x.dtype)[None]
    if not is_branch or (self.dropout and rng is not None):  # else once for the whole batch
      tokens = dropped(jnp.repeat(tokens, x.shape[0], axis=0), self.dropout, rng)
    if is_branch:
      return layer(params, (x, tokens))
    drops = self.pool == "image" and site.path == self.sites[-1]
    if x.ndim == 4:
      y = layer(params, (x, tokens))
      return y[0] if drops else y
    y = layer(params, jnp.concatenate([x, tokens], axis=1))
    return y[:, : x.shape[1]] if drops else y

  def _framed(self, x, rows, columns):
    """The images x [B, S, S, 3] with the frame, [B, S + 2 p, S + 2 p, 3]."""
    mean, std = (jnp.asarray(value, jnp.float32)[None, None] for value in (self.mean, self.std))
    rows, columns = (
      jnp.repeat(((part - mean) / std).astype(x.dtype)[None], x.shape[0], axis=0)
      for part in (rows, columns)
    )
    p = self.length
    x = jnp.concatenate([columns[:, :, :p], x, columns[:, :, p:]], axis=2)
    return jnp.concatenate([rows[:, :p], x, rows[:, p:]], axis=1)


def _uniform(key, shape, limit):
  return jax.random.uniform(key, shape, minval=-limit, maxval=limit)
