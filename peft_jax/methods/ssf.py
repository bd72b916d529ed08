"""SSF: scale and shift the features after every operation.

    y -> scale * y + shift        per channel, the last axis

Source: Lian et al. 2022, arXiv:2210.08823, section 3.2.
Start: N(1, 0.02^2) and N(0, 0.02^2), so a tuned model does NOT start equal to the backbone.
Merge: the scale goes into the output axis of the kernel (or the norm's scale), b' = scale * b +
  shift.
Where: after every linear layer, convolution and norm of a ViT; of a Swin or a ConvNeXt the same but
  for what lies between the stages. A ConvNeXt has one more pair, on the pooled features before its
  last norm, which is trained; merging moves the pair into the last stage, which needs scales other
  than zero.
Count: 2 outputs at a site: 2 (768 + 12 * 11 * 768 + 768) = 205,824 on ViT-B/16, 74 pairs with a
  fused qkv. Swin-B and ConvNeXt-B have 147 pairs each, 267,264 and 255,232, beside the last norm.
Cost: a product and a sum per feature, 0.1 % of a ViT-B/16's forward pass, until it is merged.
Releases: the official code declares pairs between the stages and never makes them, hence the
  default of `downsample_pairs`. For a feature map it guesses the axis by its length, which goes
  wrong where the width in pixels equals the channels (ConvNeXt at 512 pixels); here it is the last.
  GPS has the same files.
"""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

import jax
import jax.numpy as jnp

from peft_jax.method import Method
from peft_jax.methods.axes import along
from peft_jax.sites import LINEAR, NORM
from peft_jax.tree import flat, nest

# The path of a ConvNeXt's block.
BLOCK = r"(?P<model>.*/|)stages_(?P<stage>\d+)/blocks_(?P<block>\d+)/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSF(Method):
  """A scale and a shift after every linear layer, convolution and norm that `sites` selects.

  Variables at a site with output features fan_out:
    scale: fan_out   N(1, 0.02^2)
    shift: fan_out   N(0, 0.02^2); its gradient at a key layer is zero by mathematics: it adds the
                     same number to all logits of a query, which softmax ignores

  downsample_pairs: pairs between the stages of a Swin or a ConvNeXt, too: after the norms and the
    convolutions (7,168 and 5,376 numbers more). A Swin's `reduction`, which has no bias to take a
    shift, has none in either case.
  end: path of the norm that reads pooled features, whose pair acts on what it reads; None finds a
    ConvNeXt's, "" is none.
  """

  kinds: ClassVar[tuple[type, ...]] = LINEAR + NORM

  collection: str = "ssf"
  downsample_pairs: bool = False
  end: str | None = None

  def bind(self, table, chosen):
    """The method knowing its `end`; ValueError for sites that get no pair."""
    bare = [path for path in chosen if not self._has_pair(path)]
    if bare and (len(bare) == len(chosen) or not isinstance(self.sites, str)):
      raise ValueError(f"SSF: {bare[0]!r} gets no pair"
                       f"{'' if self.downsample_pairs else ' without downsample_pairs=True'}.")
    return dataclasses.replace(self, end=self._end(table))

  @property
  def folded(self):
    return (self.end,)

  def _has_pair(self, path):
    between = re.search(r"(^|/)stages_\d+/downsample/(\w+)$", path)
    return not between or (self.downsample_pairs and between[2] != "reduction")

  def _end(self, table):
    if self.end is not None:
      return self.end
    blocks = [m for path in table if (m := re.fullmatch(BLOCK + "dwconv", path))]
    return f"{blocks[-1]['model']}norm" if blocks else ""

  def init(self, site, key, params):
    if not self._has_pair(site.path):
      return {}
    scale, shift = jax.random.normal(key, (2, *site.fan_out))
    return {"scale": 1 + 0.02 * scale, "shift": 0.02 * shift}

  def weights(self, site, params, v):
    """A site without bias, or a norm without scale, gains one: the engine refuses to fold it."""
    gain = "kernel" if "kernel" in params else "scale"
    axes = len(site.fan_out)
    new = dict(params)
    new[gain] = v["scale"]
    if gain in params:
      new[gain] = params[gain] * along(v["scale"], params[gain], axes)
    shift = v["shift"]
    if "bias" in params:
      shift = shift.astype(params["bias"].dtype)
      shift = shift + params["bias"] * v["scale"].astype(params["bias"].dtype)
    return {**new, "bias": shift}

  def call(self, site, v, params, layer, x, rng):
    if site.path == self.end:
      return layer(params, x * along(v["scale"], x) + along(v["shift"], x))
    y = layer(params, x)
    axes = len(site.fan_out)
    return y * along(v["scale"], y, axes) + along(v["shift"], y, axes)

  def fold(self, params, tree):
    """Moves the pair at `end`, which reads the mean of the last stage's stream, into that stage.

    With scale a and shift b: what creates the stream, times a; dwconv / a and gamma * a in every
    block; in the last one gamma goes into fc2, whose bias then takes b. (b belongs nowhere earlier:
    the depthwise convolution pads with zeros.)
    """
    own, new = flat(tree), dict(flat(params))
    if not self.end or f"{self.end}/scale" not in own:
      return params
    a, b = own[f"{self.end}/scale"], own[f"{self.end}/shift"]
    blocks = [m for path in new if (m := re.fullmatch(BLOCK + "dwconv/kernel", path))]
    if not blocks:
      raise ValueError(f"SSF: the pair before the norm {self.end!r} folds into the last stage of a "
                       "ConvNeXt, and this model is none.")
    stage = max(int(m["stage"]) for m in blocks)
    blocks = sorted((int(m["block"]), m) for m in blocks if int(m["stage"]) == stage)
    model = blocks[0][1]["model"]

    def times(path, factor):
      if path in new:
        new[path] = new[path] * along(factor, new[path])

    creator = f"{model}stages_{stage}/downsample/conv" if stage else f"{model}stem/norm"
    for name in ("kernel", "scale", "bias"):
      times(f"{creator}/{name}", a)
    for i, m in blocks:
      block, is_last = m[0].removesuffix("dwconv/kernel"), i == blocks[-1][0]
      gain = a * new[f"{block}gamma"] if f"{block}gamma" in new else a
      times(f"{block}dwconv/kernel", 1 / a)
      if f"{block}gamma" in new:
        new[f"{block}gamma"] = jnp.ones_like(gain) if is_last else gain
      if is_last or f"{block}gamma" not in new:
        times(f"{block}fc2/kernel", gain)
        times(f"{block}fc2/bias", gain)
    new[f"{block}fc2/bias"] = new[f"{block}fc2/bias"] + b
    return nest(new)

  def trains(self, table, paths):
    end = self._end(table)
    return frozenset({f"{end}/scale", f"{end}/bias"} & set(paths) if end else ())
