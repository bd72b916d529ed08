"""The toy ViT whose SAN and SSF logits were computed with the official classes in float64.

A 1-channel 4x4 image, patch 2, width 4, 2 blocks, 2 heads, MLP width 8, 3 classes. Tensor number
t is filled from u = sin(t + 0.7 j) over its flat index j in PyTorch's layout (out, in).
"""

import numpy as np

from peft_jax import models
from peft_jax.tree import nest


def wave(t, *shape):
  return np.sin(t + 0.7 * np.arange(np.prod(shape))).reshape(shape)


def model(loop="python"):
  return models.ViT(
    num_classes=3, width=4, depth=2, heads=2, patch=2, image_size=4, mlp_ratio=2, loop=loop,
    dtype="float64",
  )


def images():
  """[2, 4, 4, 3]: the grey image in channel 0; the kernel of the others is zero."""
  grey = np.sin(0.3 * np.arange(32)).reshape(2, 4, 4, 1)
  return np.concatenate([grey, np.zeros((2, 4, 4, 2))], axis=-1)


def params():
  matrix = lambda t, *shape: 0.5 * wave(t, *shape).T  # noqa: E731
  bias = lambda t, n: 0.1 * wave(t, n)  # noqa: E731
  norm = lambda t: {"scale": 1 + 0.1 * wave(t, 4), "bias": bias(t + 1, 4)}  # noqa: E731
  dense = lambda t, n_out, n_in: {  # noqa: E731
    "kernel": matrix(t, n_out, n_in), "bias": bias(t + 1, n_out)
  }
  patch = (0.5 * wave(1, 4, 1, 2, 2)).transpose(2, 3, 1, 0)
  tree = {
    "patch_embed": {
      "kernel": np.concatenate([patch, np.zeros((2, 2, 2, 4))], axis=2), "bias": bias(2, 4)
    },
    "cls_token": 0.5 * wave(3, 1, 1, 4),
    "pos_embed": 0.5 * wave(4, 1, 5, 4),
    "norm": norm(29),
    "head": dense(31, 3, 4),
    "encoder": {},
  }
  for k in range(2):
    t = 5 + 12 * k
    qkv = dense(t + 2, 12, 4)
    thirds = {
      name: {leaf: np.split(value, 3, axis=-1)[i] for leaf, value in qkv.items()}
      for i, name in enumerate("qkv")
    }
    tree["encoder"][f"blocks_{k}"] = {
      "attn": {"norm": norm(t), **thirds, "proj": dense(t + 4, 4, 4)},
      "mlp": {"norm": norm(t + 6), "fc1": dense(t + 8, 8, 4), "fc2": dense(t + 10, 4, 8)},
    }
  return tree


def san():
  """Every scale and recalibration the `resize` variant may use."""
  one = lambda t, n: 1 + 0.3 * wave(t, n)  # noqa: E731
  leaves = {"patch_embed/scale": one(40, 4)}
  for k in range(2):
    t, at = 41 + 8 * k, f"encoder/blocks_{k}"
    for name, part in zip("qkv", np.split(one(t, 12), 3), strict=True):
      leaves[f"{at}/attn/{name}/scale"] = part
    for i, (name, n_out, n_in) in enumerate(
      (("attn/proj", 4, 4), ("mlp/fc1", 8, 4), ("mlp/fc2", 4, 8))
    ):
      leaves[f"{at}/{name}/scale"] = one(t + 1 + i, n_out)
      leaves[f"{at}/{name}/recal"] = one(t + 5 + i, n_in)
    leaves[f"{at}/attn/q/recal"] = one(t + 4, 4)
  return leaves


def ssf():
  leaves = {}

  def pair(path, t, n, part=slice(None)):
    leaves[f"{path}/scale"] = (1 + 0.3 * wave(t, n))[part]
    leaves[f"{path}/shift"] = (0.2 * np.cos(t + 0.7 * np.arange(n)))[part]

  pair("patch_embed", 60, 4)
  pair("norm", 73, 4)
  for k in range(2):
    t, at = 61 + 6 * k, f"encoder/blocks_{k}"
    for i, name in enumerate("qkv"):
      pair(f"{at}/attn/{name}", t + 1, 12, slice(4 * i, 4 * i + 4))
    for name, number, n in (
      ("attn/norm", t, 4), ("attn/proj", t + 2, 4), ("mlp/norm", t + 3, 4),
      ("mlp/fc1", t + 4, 8), ("mlp/fc2", t + 5, 4),
    ):
      pair(f"{at}/{name}", number, n)
  return nest(leaves)
