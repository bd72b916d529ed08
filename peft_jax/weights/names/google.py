"""The .npz files of Google's ViT codes: the original, AugReg and big_vision.

Both numberings of the modules are read (flax's before Linen, MlpBlock_3, and Linen's, MlpBlock_0),
and the blocks that a scan stacked on axis 0, Transformer/encoderblock/...
"""

import re

import numpy as np

from peft_jax.weights.names.rules import put, renamed, same_heads

PREFIXES = ("opt/target/", "params/img/", "params/")

GOOGLE = [
  (r"embedding/(\w+)", r"patch_embed/\1"),
  (r"cls", "cls_token"),
  (r"MAPHead_0/(.*)", r"map_head/\1"),
  (r"Transformer/posembed_input/pos_embedding|pos_embedding", "pos_embed"),
  (r"Transformer/encoder_norm/(\w+)", r"norm/\1"),
  (r"Transformer/encoderblock_(\d+)/LayerNorm_0/(\w+)", r"encoder/blocks_\1/attn/norm/\2"),
  (r"Transformer/encoderblock_(\d+)/LayerNorm_[12]/(\w+)", r"encoder/blocks_\1/mlp/norm/\2"),
  (r"Transformer/encoderblock_(\d+)/MlpBlock_[03]/Dense_0/(\w+)", r"encoder/blocks_\1/mlp/fc1/\2"),
  (r"Transformer/encoderblock_(\d+)/MlpBlock_[03]/Dense_1/(\w+)", r"encoder/blocks_\1/mlp/fc2/\2"),
  (r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/(\w+)/(\w+)",
   r"encoder/blocks_\1/attn/\2/\3"),
]
GOOGLE_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "proj"}


def google(arrays, heads=None):
  """The .npz layout: attention kernels are [D, heads, d] and [heads, d, D].

  heads: of the model; another number in the file would load silently and be wrong.
  """
  prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in arrays)), "")
  out = {}
  for name, w in unstacked(arrays).items():
    if name.startswith(prefix):
      name = renamed(name.removeprefix(prefix), GOOGLE)
    if m := re.fullmatch(r"(encoder/blocks_\d+/attn)/(query|key|value|out)/(kernel|bias)", name):
      name = f"{m[1]}/{GOOGLE_ATTENTION[m[2]]}/{m[3]}"
      if m[2] != "out" and w.ndim > 1:
        same_heads(w.shape[-2], heads)
        w = w.reshape(*w.shape[:-2], -1)
      elif m[2] == "out" and w.ndim == 3:
        w = w.reshape(-1, w.shape[-1])
    put(out, name, w)
  return out


def unstacked(arrays):
  """Blocks stacked by a scan, one by one."""
  out = {}
  for name, w in arrays.items():
    if m := re.fullmatch(r"(.*Transformer/encoderblock)/(.*)", name):
      for i, part in enumerate(np.atleast_1d(w)):
        put(out, f"{m[1]}_{i}/{m[2]}", part)
    else:
      put(out, name, w)
  return out
