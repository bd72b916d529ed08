"""timm's names and layouts: parameters drawn for them by one rule, and how they become ours."""

import re

import numpy as np

from peft_jax.tree import nest
from peft_jax.weights import names

SWIN = [
  (r"layers_(\d+)/(.*)", r"stages_\1/\2"),
  (r"(.*)/norm1/(\w+)", r"\1/attn/norm/\2"),
  (r"(.*)/norm2/(\w+)", r"\1/mlp/norm/\2"),
  (r"(.*)/relative_position_bias_table", r"\1/rel_pos"),
  (r"head/fc/(\w+)", r"head/\1"),
]
CONVNEXT = [
  (r"(.*)/conv_dw/(\w+)", r"\1/dwconv/\2"),
  (r"(.*)/mlp/(fc1|fc2|grn)/(\w+)", r"\1/\2/\3"),
  (r"stem_0/(\w+)", r"stem/conv/\1"),
  (r"stem_1/(\w+)", r"stem/norm/\1"),
  (r"(.*)/downsample_0/(\w+)", r"\1/downsample/norm/\2"),
  (r"(.*)/downsample_1/(\w+)", r"\1/downsample/conv/\2"),
  (r"head/norm/(\w+)", r"norm/\1"),
  (r"head/fc/(\w+)", r"head/\1"),
]


def fill(shapes):
  """The j-th name in sorted order gets RandomState(j)'s normal draws, scaled by its kind."""
  out = {}
  for j, name in enumerate(sorted(shapes)):
    shape = shapes[name]
    r = np.random.RandomState(j).standard_normal(int(np.prod(shape))).reshape(shape)
    if len(shape) == 1:
      out[name] = 0.25 * r + (1 if name.endswith(("weight", "gamma")) else 0)
    elif name.endswith(("token", "pos_embed", "bias_table")):
      out[name] = 0.5 * r
    else:
      out[name] = r / np.sqrt(np.prod(shape[1:]))
  return out


def images(size):
  return np.random.RandomState(1000).standard_normal((2, size, size, 3))


def converted(state):
  """A timm state dict of any of the families as a tree of ours."""
  if "cls_token" in state:
    return nest(names.timm(state))
  rules = SWIN if "patch_embed.proj.weight" in state else CONVNEXT
  out = {}
  for name, w in state.items():
    path = re.sub(r"\.(\d+)\.", r"_\1.", name).replace(".", "/")
    if w.ndim == 4 and w.shape[2:] == (1, 1) and "/mlp/" in path:
      w = w[:, :, 0, 0]  # timm's small ConvNeXts write their MLP as 1 x 1 convolutions
    if path.endswith("/weight"):
      path = path.removesuffix("weight") + ("scale" if w.ndim == 1 else "kernel")
      w = w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T
    for pattern, new in rules:
      path = re.sub(f"^{pattern}$", new, path)
    if m := re.fullmatch(r"(.*/attn)/qkv/(kernel|bias)", path):
      out |= {f"{m[1]}/{q}/{m[2]}": part for q, part in zip("qkv", np.split(w, 3, -1), strict=True)}
    else:
      out[path] = w
  return nest(out)
