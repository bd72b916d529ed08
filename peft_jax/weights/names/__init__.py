"""From the names and layouts of published files to ours; flat dictionaries on both sides.

    google        .npz of the original ViT, AugReg and big_vision
    torch's       timm and what is named after it (DeiT, MAE, MoCo v3, DINOv2, Swin, SSF, GPS), the
                  originals of Swin and ConvNeXt, Hugging Face's, CLIP's: see LAYOUTS
    ours          patch_embed/kernel, ...; see the models

Every tensor of a file is accounted for: renamed, or skipped for a stated reason, or passed on under
its name, so that `fit` in load.py reports it.
"""

import re

import numpy as np

from peft_jax.models.stack import unstack_blocks
from peft_jax.tree import flat, nest
from peft_jax.weights.names.families import FAMILIES, family_of, has_conv_mlp, to_ours, to_timm
from peft_jax.weights.names.focus import focus
from peft_jax.weights.names.google import google
from peft_jax.weights.names.layouts import BUFFERS, LAYOUTS, PREFIXES, REFUSED, rename
from peft_jax.weights.names.rules import same_heads

__all__ = ["FAMILIES", "LAYOUTS", "SKIPPED", "family_of", "find", "focus", "google", "has_conv_mlp",
           "layout", "same_heads", "timm", "to_timm", "translate"]

# What the loader drops from any file, by the name it has after mapping, unless the model has it.
SKIPPED = {
  r"head(_dist|_drop)?/.*": "a head of other classes",
  r"head\.\d+\..*|head\.(?!norm).*": "a projector or head that no model here has",
  r"pre_logits/.*": "the hidden layer of the original ImageNet-21k head, dropped by all PEFT codes",
  r"map_head/.*": "a head that pools by attention",
  r"mask_token": "only used in pre-training",
  r"opt/.*": "the optimizer's state",
}


def find(arrays):
  """(key of LAYOUTS, prefix of the names) of a file's arrays; (None, "") when it is unknown."""
  for prefix in PREFIXES:
    inner = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
    for key, layout in LAYOUTS.items():
      if all(any(re.fullmatch(mark, name) for name in inner) for mark in layout.marks):
        return key, prefix
  return None, ""


def layout(arrays):
  """The key of LAYOUTS, by names alone; None when it is unknown."""
  return find(arrays)[0]


def translate(arrays, heads=None):
  """({our path: array}, skipped as sentences) of a file's arrays.

  heads: of the model, checked where the file tells them. Arrays are views where they can be.
  Raises ValueError for names of no known layout, and for known models that are not supported.
  """
  key, prefix = find(arrays)
  for mark, what in REFUSED.items():
    if any(re.fullmatch(mark, name) for name in arrays):
      raise ValueError(f"this is {what}, which is not among the models here.")
  if key is None:
    raise ValueError("it holds no patch embedding under a name known here (layouts: "
                     f"{', '.join(LAYOUTS)}); its first names are {', '.join(sorted(arrays)[:4])}.")
  if key == "ours":
    return {k: np.asarray(v) for k, v in flat(unstack_blocks(nest(arrays))).items()}, []
  if key == "google":
    return google(arrays, heads), []
  arrays, skipped = timm_names(arrays, key, prefix)
  out = to_ours(arrays, FAMILIES[LAYOUTS[key].family])
  if heads is not None and is_moco_small(out):
    same_heads(12, heads)
  return out, skipped


def timm_names(arrays, key, prefix=""):
  """({timm's name: array}, skipped) of a torch state dict in the layout `key`."""
  rules = LAYOUTS[key]
  out, skipped = {}, []
  for name, w in arrays.items():
    inner = name.removeprefix(prefix)
    why = (reason(PREFIXES[prefix] | BUFFERS, name)
           or reason(rules.skipped, inner if name.startswith(prefix) else name))
    if why:
      skipped.append(f"{name}: {why}")
      continue
    new = rename(inner, rules)
    if new in out:
      raise ValueError(f"two of its tensors are {new}.")
    out[new] = shaped(new, w)
  return out, skipped


def reason(table, name):
  return next((why for rule, why in table.items() if re.fullmatch(rule, name)), None)


def shaped(name, w):
  """`w` with the axes timm gives it: tokens [1, n, D], a table [1, N, D], what is [C] flat."""
  if name in ("cls_token", "dist_token", "reg_token", "pos_embed") and w.ndim < 3 and w.size:
    return w.reshape(1, -1, w.shape[-1])
  if re.search(r"\.grn\.(weight|bias)$", name):
    return w.reshape(-1)
  return w


def is_moco_small(params):
  """Whether this is MoCo v3's ViT-S: width 384 and its fixed table, whose first half is the row.

  It has 12 heads of 32, not the 6 of every other ViT-S, and a file does not say so.
  """
  table = params.get("pos_embed")
  if table is None or table.ndim != 3 or table.shape[-1] != 384:
    return False
  side = int(round((table.shape[1] - 1) ** 0.5))
  if side < 2 or side * side != table.shape[1] - 1 or table[0, 0].any():
    return False
  row = table[0, 1:, :192].reshape(side, side, 192)
  return not np.ptp(row, axis=1).any() and bool(np.ptp(row, axis=0).any())


def timm(arrays):
  """{our path: array} of a state dict in any of the torch layouts, without what is skipped."""
  return translate(arrays)[0]
