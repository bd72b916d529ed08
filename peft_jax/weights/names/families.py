"""Ours and timm's names of the parameters of one model, as one table per family, read both ways.

A torch state dict names a linear layer's weight [out, in] and a convolution's [out, in, h, w]; ours
are kernels [in, out] and [h, w, in, out]. A norm's weight is our scale. The fused qkv of timm is
ours q, k and v, thirds of it in this order; its features are head-major in both, so nothing is
permuted.
"""

import dataclasses
import functools
import re

import numpy as np

from peft_jax.weights.names.rules import put


@dataclasses.dataclass(frozen=True)
class Family:
  """modules: path of ours to timm's name, for what has weight and bias.  leaves: the same for
  single arrays, equal in both.  "#" stands for a number."""

  modules: dict
  leaves: dict

  @functools.cached_property
  def from_timm(self):
    """[(pattern of a timm module, our path, its kind)] with groups for the numbers."""
    return [(pattern(theirs), template(ours), kind)
            for kind, table in (("module", self.modules), ("leaf", self.leaves))
            for ours, theirs in table.items()]

  @functools.cached_property
  def to_timm(self):
    return [(pattern(ours), template(theirs), kind)
            for kind, table in (("module", self.modules), ("leaf", self.leaves))
            for ours, theirs in table.items()]


def pattern(name):
  return re.escape(name).replace(r"\#", r"(\d+)")


def template(name):
  parts = name.split("#")
  return parts[0] + "".join(rf"\{i}{part}" for i, part in enumerate(parts[1:], 1))


def attention(ours, theirs, norms=("norm1", "norm2")):
  """The two branches of a transformer's block."""
  return {
    f"{ours}/attn/norm": f"{theirs}.{norms[0]}",
    **{f"{ours}/attn/{n}": f"{theirs}.attn.{n}" for n in ("qkv", "q", "k", "v", "proj")},
    f"{ours}/mlp/norm": f"{theirs}.{norms[1]}",
    f"{ours}/mlp/fc1": f"{theirs}.mlp.fc1",
    f"{ours}/mlp/fc2": f"{theirs}.mlp.fc2",
  }


VIT = Family(
  {
    "patch_embed": "patch_embed.proj",
    "norm_pre": "norm_pre",
    **attention("encoder/blocks_#", "blocks.#"),
    "norm": "norm",
    "fc_norm": "fc_norm",
    "pre_logits": "pre_logits.fc",
    "head": "head",
    "head_dist": "head_dist",
  },
  {
    "cls_token": "cls_token",
    "dist_token": "dist_token",
    "reg_tokens": "reg_token",
    "pos_embed": "pos_embed",
    "encoder/blocks_#/attn/ls": "blocks.#.ls1.gamma",
    "encoder/blocks_#/mlp/ls": "blocks.#.ls2.gamma",
  },
)

SWIN = Family(
  {
    "patch_embed/proj": "patch_embed.proj",
    "patch_embed/norm": "patch_embed.norm",
    **attention("stages_#/blocks_#", "layers.#.blocks.#"),
    "stages_#/downsample/norm": "layers.#.downsample.norm",
    "stages_#/downsample/reduction": "layers.#.downsample.reduction",
    "norm": "norm",
    "head": "head.fc",
  },
  {"stages_#/blocks_#/attn/rel_pos": "layers.#.blocks.#.attn.relative_position_bias_table"},
)

CONVNEXT = Family(
  {
    "stem/conv": "stem.0",
    "stem/norm": "stem.1",
    "stages_#/downsample/norm": "stages.#.downsample.0",
    "stages_#/downsample/conv": "stages.#.downsample.1",
    "stages_#/blocks_#/dwconv": "stages.#.blocks.#.conv_dw",
    "stages_#/blocks_#/norm": "stages.#.blocks.#.norm",
    "stages_#/blocks_#/fc1": "stages.#.blocks.#.mlp.fc1",
    "stages_#/blocks_#/grn": "stages.#.blocks.#.mlp.grn",
    "stages_#/blocks_#/fc2": "stages.#.blocks.#.mlp.fc2",
    "norm": "head.norm",
    "head": "head.fc",
  },
  {"stages_#/blocks_#/gamma": "stages.#.blocks.#.gamma"},
)

FAMILIES = {"vit": VIT, "swin": SWIN, "convnext": CONVNEXT}
# A path that only this family has.
MARKS = {"vit": "patch_embed/kernel", "swin": "patch_embed/proj/kernel",
         "convnext": "stem/conv/kernel"}


def to_ours(arrays, family):
  """{our path: array} of a state dict in timm's names; names that are not timm's stay.

  Arrays are views where they can be.
  """
  out = {}
  for name, w in arrays.items():
    module, _, leaf = name.rpartition(".")
    for theirs, ours, kind in family.from_timm:
      if kind == "leaf" and (m := re.fullmatch(theirs, name)):
        put(out, m.expand(ours), w)
      elif kind == "module" and leaf in ("weight", "bias") and (m := re.fullmatch(theirs, module)):
        put_layer(out, m.expand(ours), leaf, w)
      else:
        continue
      break
    else:
      put(out, name, w)
  return out


def put_layer(out, path, leaf, w):
  """Weight or bias `w` of torch as the leaves of the layer at `path`."""
  if leaf == "weight":
    leaf = "scale" if w.ndim == 1 else "kernel"
    if w.shape[2:] == (1, 1) and re.search("/fc[12]$", path):  # a convolution in ConvNeXt's atto
      w = w[:, :, 0, 0]
    w = w.transpose({2: (1, 0), 4: (2, 3, 1, 0)}.get(w.ndim, range(w.ndim)))
  if path.endswith("/qkv"):
    for q, part in zip("qkv", np.split(w, 3, -1), strict=True):
      put(out, f"{path.removesuffix('qkv')}{q}/{leaf}", part)
  else:
    put(out, f"{path}/{leaf}", w)


def family_of(paths):
  """The key of FAMILIES for our paths; None when they are no model of ours."""
  return next((name for name, mark in MARKS.items() if mark in paths), None)


def has_conv_mlp(model):
  """Whether timm builds the model of this name with 1 x 1 convolutions for linear layers."""
  return bool(re.match(r"convnext(v2)?_(atto|femto|pico|nano)", model))


def to_timm(params, conv_mlp=False):
  """{timm's name: array} of a flat {our path: array}, one subtree per block; undoes `to_ours`.

  conv_mlp: timm's form of ConvNeXt's smallest, see `has_conv_mlp`.
  Raises ValueError for a tree that is none of FAMILIES, and names the first path that is unknown.
  """
  name = family_of(params)
  if name is None:
    raise ValueError(f"a tree of {', '.join(sorted(params)[:3])} has no names in timm: it is none "
                     f"of {', '.join(FAMILIES)}.")
  out = {}
  for path, w in sorted(fused(params).items()):
    w = np.asarray(w)
    module, _, leaf = path.rpartition("/")
    for ours, theirs, kind in FAMILIES[name].to_timm:
      if kind == "leaf" and (m := re.fullmatch(ours, path)):
        out[m.expand(theirs)] = w
        break
      if kind == "module" and (m := re.fullmatch(ours, module)):
        if leaf == "kernel":
          w = w.transpose({2: (1, 0), 4: (3, 2, 0, 1)}[w.ndim])
          if conv_mlp and re.search(r"/fc[12]$", module) and name == "convnext":
            w = w[:, :, None, None]
        out[f"{m.expand(theirs)}.{'bias' if leaf == 'bias' else 'weight'}"] = w
        break
    else:
      raise ValueError(f"there is no timm name for {path} in a model of the family {name}; "
                       "only our own names hold it.")
  return out


def fused(params):
  """`params` with every q, k and v joined to qkv."""
  out = {}
  for path, w in params.items():
    if m := re.fullmatch(r"(.*/attn)/([qkv])/(\w+)", path):
      if m[2] == "q":
        parts = [np.asarray(params[f"{m[1]}/{n}/{m[3]}"]) for n in "qkv"]
        out[f"{m[1]}/qkv/{m[3]}"] = np.concatenate(parts, -1)
    else:
      out[path] = w
  return out
