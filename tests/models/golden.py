"""Run as a script under JAX_ENABLE_X64=1: prints the logits of the golden cases as JSON.

The parameters are drawn for timm's names in timm's layouts by the rule in timm_names.py, so that
the same numbers can be had from timm itself: `python tests/models/timm_live_test.py` prints them
where timm is installed.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import timm_names

from peft_jax import models

CLASSES = 5

# case: (preset, overrides)
CASES = {
  "vit": ("vit_test", {}),
  "vit mean-pool": ("vit_test", {"pool": "avg"}),
  "dinov2": ("vit_test", {"layer_scale": 1e-5, "registers": 2, "no_embed_class": True}),
  "deit distilled": ("vit_test", {"distilled": True}),
  "clip": ("vit_test", {"norm_pre": True, "patch_bias": False, "eps": 1e-5, "gelu": "quick"}),
  "swin": ("swin_test", {}),
  "swin odd": ("swin_test", {"image_size": 102, "depths": (2, 2, 2), "heads": (2, 4, 4)}),
  "swin window 12": ("swin_test", {"image_size": 100, "window": 12}),
  "convnext": ("convnext_test", {}),
  "convnext odd": ("convnext_test", {"image_size": 75}),
  "convnextv2": ("convnext_test", {"image_size": 46, "layer_scale": None, "grn": True}),
}


def create(case, **more):
  name, overrides = CASES[case]
  return models.create(name, num_classes=CLASSES, **overrides, **more)


def linear(name, rows, columns, *window):
  return {f"{name}.weight": (rows, columns, *window), f"{name}.bias": (rows,)}


def vector(name, size):
  return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def vit(m):
  d, prefix = m.width, 0 if m.no_embed_class else 1 + m.distilled
  out = {"cls_token": (1, 1, d), "pos_embed": (1, prefix + (m.image_size // m.patch) ** 2, d)}
  out |= linear("patch_embed.proj", d, 3, m.patch, m.patch) | linear("head", CLASSES, d)
  if not m.patch_bias:
    del out["patch_embed.proj.bias"]
  if m.distilled:
    out |= {"dist_token": (1, 1, d)} | linear("head_dist", CLASSES, d)
  if m.registers:
    out["reg_token"] = (1, m.registers, d)
  if m.norm_pre:
    out |= vector("norm_pre", d)
  out |= vector("norm" if m.pool == "cls" else "fc_norm", d)
  for i in range(m.depth):
    b = f"blocks.{i}"
    out |= vector(f"{b}.norm1", d) | vector(f"{b}.norm2", d)
    out |= linear(f"{b}.attn.qkv", 3 * d, d) | linear(f"{b}.attn.proj", d, d)
    out |= linear(f"{b}.mlp.fc1", 4 * d, d) | linear(f"{b}.mlp.fc2", d, 4 * d)
    if m.layer_scale is not None:
      out[f"{b}.ls1.gamma"] = out[f"{b}.ls2.gamma"] = (d,)
  return out


def swin(m):
  c, side = m.width, m.image_size // m.patch
  out = linear("patch_embed.proj", c, 3, m.patch, m.patch) | vector("patch_embed.norm", c)
  for s, (depth, heads) in enumerate(zip(m.depths, m.heads, strict=True)):
    if s:
      out |= vector(f"layers.{s}.downsample.norm", 4 * c)
      out[f"layers.{s}.downsample.reduction.weight"] = (2 * c, 4 * c)
      c, side = 2 * c, (side + 1) // 2
    for i in range(depth):
      b = f"layers.{s}.blocks.{i}"
      rows = (2 * min(m.window, side) - 1) ** 2
      out |= vector(f"{b}.norm1", c) | vector(f"{b}.norm2", c)
      out |= linear(f"{b}.attn.qkv", 3 * c, c) | linear(f"{b}.attn.proj", c, c)
      out |= linear(f"{b}.mlp.fc1", 4 * c, c) | linear(f"{b}.mlp.fc2", c, 4 * c)
      out[f"{b}.attn.relative_position_bias_table"] = (rows, heads)
  return out | vector("norm", c) | linear("head.fc", CLASSES, c)


def convnext(m):
  out = linear("stem.0", m.widths[0], 3, m.patch, m.patch) | vector("stem.1", m.widths[0])
  for s, (c, depth) in enumerate(zip(m.widths, m.depths, strict=True)):
    if s:
      out |= vector(f"stages.{s}.downsample.0", m.widths[s - 1])
      out |= linear(f"stages.{s}.downsample.1", c, m.widths[s - 1], 2, 2)
    for i in range(depth):
      b = f"stages.{s}.blocks.{i}"
      out |= linear(f"{b}.conv_dw", c, 1, 7, 7) | vector(f"{b}.norm", c)
      out |= linear(f"{b}.mlp.fc1", 4 * c, c) | linear(f"{b}.mlp.fc2", c, 4 * c)
      out |= vector(f"{b}.mlp.grn", 4 * c) if m.grn else {f"{b}.gamma": (c,)}
  return out | vector("head.norm", c) | linear("head.fc", CLASSES, c)


SHAPES = {"ViT": vit, "Swin": swin, "ConvNeXt": convnext}


def logits(case, loop):
  model = create(case, loop=loop, dtype="float64")
  state = timm_names.fill(SHAPES[type(model).__name__](model))
  params = timm_names.converted(state)
  if "scan" in loop:
    params = models.stack_blocks(params)
  y = jax.jit(model.apply)({"params": params}, timm_names.images(model.image_size))
  assert y.dtype == jnp.float64
  return {"parameters": sum(v.size for v in state.values()), "logits": np.asarray(y).tolist()}


if __name__ == "__main__":
  runs = [(case, "python") for case in CASES] + [("dinov2", "scan_remat"), ("swin", "remat")]
  json.dump({f"{case} {loop}": logits(case, loop) for case, loop in runs}, sys.stdout)
