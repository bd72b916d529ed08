"""Training views made on the host, as the papers' recipes make them: Pillow, from the image in
its own size.

random_resized_crop    a box of 8 to 100 % of the area and of ratio 3/4 to 4/3, stretched to the
                       size, bilinear or bicubic (SSF, GPS, SAN on FGVC, CIFAR-100 and ImageNet)
short_crop             the short side to 256 for 224, bilinear, and a random box of 224 (VPT)
squash_crop            both sides to 256 for 224, bicubic, and a random box of 224 (SPT)

Each is then flipped left-right with probability 1/2, and RandAugment follows where asked for.
All draws come from (seed, step, place in the global batch): devices, processes and restarts
change nothing.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from peft_jax.data import rand_augment, transforms
from peft_jax.data.augment import AREA, RATIO, TRIES
from peft_jax.data.pipeline import MEAN_STD
from peft_jax.data.rand_augment import FILTERS, RandAugment


def draws(seed, step, place):
  """A function () -> float64 in [0, 1), uniform: the draws for one image of a training run.

  seed: any integer; step: from 0; place: of the image in the global batch. Philox, keyed by the
  seed and counting from (place, step), so that no two images share a draw.
  """
  counter = np.asarray([0, place, step, 0], np.uint64)
  return np.random.Generator(np.random.Philox(key=int(seed) % 2**64, counter=counter)).random


@dataclasses.dataclass(frozen=True)
class View:
  """How a training image is made of a picture.

  how: a name in VIEWS. interpolation: of random_resized_crop and of RandAugment, a name in
  FILTERS. fill: (red, green, blue) of what RandAugment moves in from outside.
  """

  how: str
  interpolation: str = "random"
  rand_augment: RandAugment | None = None
  fill: tuple[int, int, int] = (128, 128, 128)

  def __call__(self, image, size, draw):
    """uint8 [size, size, 3] of a Pillow image of mode L or RGB; draw: see `draws`."""
    filters = FILTERS[self.interpolation]
    image = VIEWS[self.how](image.convert("RGB"), size, draw, filters)
    if draw() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if self.rand_augment is not None:
      image = self.rand_augment(image, draw, filters, self.fill)
    return np.asarray(image)


def of(options):
  """The View that the section `data` of a resolved config asks for; None where it has no view.

  Raises ValueError for options that do not go together and for a rand_augment not understood.
  """
  if options.view is None:
    if options.rand_augment is not None:
      raise ValueError(
        f"data.rand_augment={options.rand_augment!r} needs a view: "
        f"set data.view to one of {', '.join(VIEWS)}."
      )
    return None
  if options.augment != "none":
    raise ValueError(
      f"data.view={options.view} crops and flips, and data.augment={options.augment} would do it "
      "again: leave data.augment=none."
    )
  return View(
    options.view,
    options.interpolation,
    None if options.rand_augment is None else rand_augment.parse(options.rand_augment),
    tuple(round(255 * mean) for mean in MEAN_STD[options.normalize][0]),
  )


def random_resized_crop(image, size, draw, filters):
  left, top, width, height = draw_box(*image.size, draw)
  filter = rand_augment.pick(filters, draw)
  # Cropped first: resize(box=...) would let pixels outside the box in.
  return image.crop((left, top, left + width, top + height)).resize((size, size), filter)


def draw_box(width, height, draw):
  """(left, top, width, height) of a random box in whole pixels, as torchvision and timm draw it.

  The first of ten draws that fits; else the largest central box whose ratio is allowed.
  """
  log_low, log_high = math.log(RATIO[0]), math.log(RATIO[1])
  for _ in range(TRIES):
    area = (AREA[0] + (AREA[1] - AREA[0]) * draw()) * (width * height)
    ratio = math.exp(log_low + (log_high - log_low) * draw())
    wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < wide <= width and 0 < high <= height:
      top = int(draw() * (height - high + 1))
      return int(draw() * (width - wide + 1)), top, wide, high
  wide, high = width, height
  if width / height < RATIO[0]:
    high = round(width / RATIO[0])
  elif width / height > RATIO[1]:
    wide = round(height * RATIO[1])
  return (width - wide) // 2, (height - high) // 2, wide, high


def short_crop(image, size, draw, filters):
  short = transforms.of_256(size)
  return random_crop(transforms.to_short(image, short, Image.Resampling.BILINEAR), size, draw)


def squash_crop(image, size, draw, filters):
  short = transforms.of_256(size)
  return random_crop(image.resize((short, short), Image.Resampling.BICUBIC), size, draw)


def random_crop(image, size, draw):
  width, height = image.size
  top = int(draw() * (height - size + 1))
  left = int(draw() * (width - size + 1))
  return image.crop((left, top, left + size, top + size))


VIEWS = {
  "random_resized_crop": random_resized_crop,
  "short_crop": short_crop,
  "squash_crop": squash_crop,
}
