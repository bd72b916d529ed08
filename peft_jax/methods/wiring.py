"""Which output scale feeds which layer: the wires of SAN, by the names of the modules."""

from __future__ import annotations

import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


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


def given_wires(wiring):
  """The Wires of `SAN.wiring`; ValueError where it has another form."""
  try:
    return tuple(Wire(*wire) for wire in wiring)
  except TypeError:
    form = "((site, (source, ...)), ...)"
    raise ValueError(f"SAN: wiring={wiring!r} is not of the form {form}.") from None


def wires_among(chosen, wires, known):
  """The wires whose ends are all `chosen`; ValueError for an end that is not even `known`."""
  named = {path for wire in wires for path in (wire.site, *wire.sources, *wire[2:]) if path}
  if strangers := named - set(known):
    raise ValueError(
      f"SAN: the wiring names {sorted(strangers)[0]!r}, which `sites` does not select."
    )
  return tuple(
    wire._replace(recal=wire.recal or wire.site)
    for wire in wires
    if {wire.site, *wire.sources, *filter(None, [wire.before, wire.recal])} <= set(chosen)
  )


def known_wires(table, qkv_source, proj_source):
  """The wires of a ViT, a Swin or a ConvNeXt, as in san.py; `table` is in call order.

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


def stacked(scale, source, site):
  """A source's output scale as [*site.stack, features]."""
  scale = jnp.reshape(scale, (*source.stack, -1))
  if len(source.stack) < len(site.stack):
    scale = jnp.broadcast_to(scale, (*site.stack, scale.shape[-1]))
  return scale


def resized(scale, size):
  """[..., n] as [..., size]: itself, tiled, or linearly interpolated with aligned corners."""
  n = scale.shape[-1]
  if n == size:
    return scale
  if size % n == 0:
    return jnp.concatenate([scale] * (size // n), axis=-1)
  position = np.arange(size) * (n - 1) / (size - 1) if size > 1 else np.zeros(1)
  low = np.minimum(position.astype(int), n - 2)
  weight = jnp.asarray(position - low, scale.dtype)
  weight = jnp.reshape(weight, (1,) * (scale.ndim - 1) + weight.shape)
  # low + weight * (high - low), so that a vector of ones stays exactly one.
  return scale[..., low] + weight * (scale[..., low + 1] - scale[..., low])
