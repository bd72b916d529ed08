"""Which output scale feeds which layer: the wires of SAN, by the names of the modules."""

from __future__ import annotations

import re
from typing import NamedTuple


class Wire(NamedTuple):
  """Where the input scale of one site comes from.

  site: path of the site whose input is scaled.
  sources: paths of the sites whose output scales are concatenated to feed it.
  recal: path of the site that holds the recalibration vector (shared by q, k and v).
  before: path of the site that feeds the first layer of a stack when `sources` are those of
    the previous layer of an nn.scan; "" otherwise.

  The concatenation is used as it is where its length is the site's number of input features,
  tiled where the site reads m copies of it, and else resized by linear interpolation with
  aligned corners: out[i] at position i (n_in - 1) / (n_out - 1).
  """

  site: str
  sources: tuple[str, ...]
  recal: str = ""
  before: str = ""


def known_wires(table, qkv_source, proj_source):
  """The wires of a ViT, a Swin or a ConvNeXt; `table` is in call order.

  ViT as in the official code (SAN-PEFT: train_code/SAN_resize_smooth.py):
  q, k, v <- patch embedding (or the fc2 of the block before); proj <- q, k, v;
  fc1 <- proj; fc2 <- fc1. There is none for the others; the same rules give
  Swin: as ViT, but q, k, v <- what created the stream of their stage (patch embedding, reduction);
    reduction <- the last fc2 before it, whose channels it reads four times
  ConvNeXt: dwconv <- what created the stream of its stage (stem, convolution between stages);
    fc1 <- dwconv; fc2 <- fc1; convolution between stages <- the last fc2 before it.
  Raises ValueError for a model without these names.
  """
  stem = next((path for path, site in table.items() if is_stem(site)), None)
  opened = [path for path in table if re.search(r"(^|/)(attn/q|dwconv)$", path)]
  if not opened or stem is None:
    raise ValueError(
      "SAN: no wiring is known for this model (no patch_embed and attn/q, or stem and dwconv, "
      "among its sites); give SAN(wiring=(Wire(site, (source,)), ...)), or mode='nt' for output "
      "scales only."
    )
  wires, creator, before = [], stem, None  # before: the fc2 of the block before, in this stage
  for path, site in table.items():
    folder, _, name = path.rpartition("/")
    if before and re.search(r"(^|/)downsample/(reduction|conv)$", path):
      wires.append(Wire(path, (before,)))
      creator, before = path, None
    if path not in opened:
      continue
    if name == "dwconv":
      openers, fc1, fc2 = (path,), f"{folder}/fc1", f"{folder}/fc2"
    else:
      openers, mlp = tuple(f"{folder}/{n}" for n in "qkv"), folder.removesuffix("attn") + "mlp"
      proj, fc1, fc2 = f"{folder}/proj", f"{mlp}/fc1", f"{mlp}/fc2"
    if qkv_source == "stem" or (before is None and not site.stack):
      source, first = creator, ""
    else:
      source, first = (fc2, creator) if site.stack else (before, "")
    wires += [Wire(opener, (source,), path, first) for opener in openers]
    if name == "q" and proj_source != "none":
      wires.append(Wire(proj, openers if proj_source == "interp" else openers[2:]))
    wires += [Wire(fc1, (path if name == "dwconv" else proj,)), Wire(fc2, (fc1,))]
    before = fc2
  return tuple(wires)


def is_stem(site):
  """Whether a site is the first convolution of one of the known backbones."""
  return site.is_conv and bool(re.search(r"(^|/)(patch_embed|patch_embed/proj|stem/conv)$",
                                         site.path))
