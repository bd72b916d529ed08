"""RandAugment as the papers' recipes use it: a few operations, drawn anew for each image.

    "rand-m9-mstd0.5-inc1"    two operations, each applied with probability 1/2 at a level drawn
                              from N(9, 0.5), clipped to 0..10

Cubuk et al. 2020, arXiv:1909.13719, in the form timm gives it (timm/data/auto_augment.py: the
string, the "increasing" operations, the noise on the level). An operation gives timm's bits for
the same level, sign and filter; the draws are our own.
"""

import dataclasses
import re
import statistics
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps

TOP = 10  # the highest level
FILTERS = {  # of the operations that move pixels, and of crops
  "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
  "bilinear": (Image.Resampling.BILINEAR,),
  "bicubic": (Image.Resampling.BICUBIC,),
}


class Op(NamedTuple):
  """amount: share of the top level, 0..1 -> the operation's argument, None where it has none.

  signed: the argument's sign is drawn, 1/2 each. moves: it moves pixels, so that a filter is drawn
  and what comes in from outside is filled. apply(image, argument, **how): an image of mode RGB.
  """

  amount: Callable | None
  signed: bool
  moves: bool
  apply: Callable


def affine(matrix):
  """An Op's function; matrix(image, argument): (a, b, c, d, e, f) of Image.transform."""
  return lambda image, argument, **how: image.transform(
    image.size, Image.Transform.AFFINE, matrix(image, argument), **how
  )


def enhanced(kind):
  """An Op's function: 1 + argument times the picture, the rest what `kind` fades to."""
  return lambda image, argument: kind(image).enhance(max(0.1, 1.0 + argument))


def posterize(image, argument):
  """Keeps the highest 0 to 4 bits; none leave black. ImageOps.posterize of Pillow 13 refuses 0."""
  mask = 256 - 2 ** (8 - argument)
  return image.point([level & mask for level in range(256)] * 3)


def solarize_add(image, argument):
  """Adds to the darker half of the levels."""
  levels = [min(255, level + argument) if level < 128 else level for level in range(256)]
  return image.point(levels * 3)


# fmt: off
OPS = {  # in the order in which they are drawn
  "auto_contrast": Op(None, False, False, lambda image, _: ImageOps.autocontrast(image)),
  "equalize": Op(None, False, False, lambda image, _: ImageOps.equalize(image)),
  "invert": Op(None, False, False, lambda image, _: ImageOps.invert(image)),
  "rotate": Op(lambda share: share * 30.0, True, True,  # degrees
               lambda image, argument, **how: image.rotate(argument, **how)),
  "posterize": Op(lambda share: 4 - int(share * 4), False, False, posterize),  # bits
  "solarize": Op(lambda share: 256 - int(share * 256), False, False,  # inverts from this level on
                 lambda image, argument: ImageOps.solarize(image, argument)),
  "solarize_add": Op(lambda share: int(share * 110), False, False, solarize_add),
  "color": Op(lambda share: share * 0.9, True, False, enhanced(ImageEnhance.Color)),
  "contrast": Op(lambda share: share * 0.9, True, False, enhanced(ImageEnhance.Contrast)),
  "brightness": Op(lambda share: share * 0.9, True, False, enhanced(ImageEnhance.Brightness)),
  "sharpness": Op(lambda share: share * 0.9, True, False, enhanced(ImageEnhance.Sharpness)),
  "shear_x": Op(lambda share: share * 0.3, True, True,
                affine(lambda image, shear: (1, shear, 0, 0, 1, 0))),
  "shear_y": Op(lambda share: share * 0.3, True, True,
                affine(lambda image, shear: (1, 0, 0, shear, 1, 0))),
  "translate_x": Op(lambda share: share * 0.45, True, True,  # of the width
                    affine(lambda image, part: (1, 0, part * image.size[0], 0, 1, 0))),
  "translate_y": Op(lambda share: share * 0.45, True, True,  # of the height
                    affine(lambda image, part: (1, 0, 0, 0, 1, part * image.size[1]))),
}
# fmt: on


def operate(image, name, level, *, negative=False, filter=None, fill=None):
  """`image` (mode RGB) after one operation of OPS; size and mode stay.

  level: 0..10, how strong. negative: the argument's sign, where it has one. filter, fill: of
  those that move pixels: a Pillow resampling, and the (red, green, blue) of what comes from
  outside.
  """
  op = OPS[name]
  argument = None if op.amount is None else op.amount(level / TOP)
  if op.signed and negative:
    argument = -argument
  how = {"resample": filter, "fillcolor": fill} if op.moves else {}
  return op.apply(image, argument, **how)


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """level: mean, 0..10; std: of the level; layers: operations drawn, with replacement;
  probability: with which each of them is applied."""

  level: float = TOP
  std: float = 0.0
  layers: int = 2
  probability: float = 0.5

  def __call__(self, image, draw, filters, fill):
    """`image` (mode RGB) augmented. draw() -> [0, 1); filters: a value of FILTERS; fill: RGB."""
    names = list(OPS)
    drawn = [names[int(draw() * len(names))] for _ in range(self.layers)]
    for name in drawn:
      if draw() >= self.probability:
        continue
      level = self.level
      if self.std:
        # NumPy's own normal draws are free to change between its versions; these are not.
        level = statistics.NormalDist(level, self.std).inv_cdf(max(draw(), 2.0**-53))
      level = max(0.0, min(level, float(TOP)))
      negative = OPS[name].signed and draw() > 0.5
      filter = pick(filters, draw) if OPS[name].moves else None
      image = operate(image, name, level, negative=negative, filter=filter, fill=fill)
    return image


def pick(filters, draw):
  """One of them; nothing is drawn for a single one."""
  return filters[int(draw() * len(filters))] if len(filters) > 1 else filters[0]


def parse(text):
  """The RandAugment of timm's string: m level, mstd std, n layers, p probability, and inc1.

  Raises ValueError for another form; without inc1 timm has other operations, which are not here.
  """
  values = {}
  for part in text.split("-")[1:]:
    found = re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?)", part)
    if not found or found[1] in values:
      raise _not_understood(text)
    values[found[1]] = float(found[2])
  made = RandAugment(
    level=values.get("m", TOP),
    std=values.get("mstd", 0.0),
    layers=int(values.get("n", 2)),
    probability=values.get("p", 0.5),
  )
  in_range = made.level <= TOP and made.std <= TOP and made.layers >= 1 and made.probability <= 1
  whole = values.get("n", 2) == made.layers
  if not (text.startswith("rand-") and values.get("inc") == 1 and in_range and whole):
    raise _not_understood(text)
  return made


def _not_understood(text):
  return ValueError(
    f"data.rand_augment={text!r} is not understood; give it as rand-m9-mstd0.5-inc1: level m and "
    "its deviation mstd (0 to 10), optionally the number of operations n (2) and their "
    "probability p (0.5), and inc1."
  )
