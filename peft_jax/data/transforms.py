"""From an image of any size to [size, size]: the resizes the papers' codes use.

bicubic_pil    stretch, Pillow bicubic (SSF, GPS, SPT, NOAH): the default
bilinear_pil   stretch, Pillow bilinear (V-PETL Bench)
tf1_bilinear   stretch, TensorFlow 1 bilinear: no half-pixel centres, no antialiasing
               (the VTAB reference, VPT); 3 to 9 grey levels away from Pillow on average
short_side     short side to floor(size / 0.9) (248 for 224), Pillow bicubic, centre crop
               (SSF, GPS and SAN on FGVC, CIFAR-100 and ImageNet)
short_side_875 short side to floor(size / 0.875) (256), Pillow bicubic, centre crop
               (the same codes with ConvNeXt)
short_side_256 short side to 256 for 224, Pillow bilinear, centre crop (VPT)
squash_256     both sides to 256 for 224, Pillow bicubic, centre crop (SPT)
"""

import functools
import struct

import numpy as np
from PIL import Image, ImageOps

# What Pillow raises for a file that is no image, is cut short or is far too large.
UNREADABLE = (
  OSError,
  ValueError,
  SyntaxError,
  EOFError,
  struct.error,
  Image.DecompressionBombError,
)


def resize(image, size, how):
  """uint8 [size, size] or [size, size, 3] from a Pillow image of mode L or RGB.

  Raises ValueError for a `how` that is not in RESIZES.
  """
  return check(how)(image, size)


def check(how):
  """The function called `how` in RESIZES; ValueError listing them if there is none."""
  if how not in RESIZES:
    raise ValueError(f"There is no resize '{how}'; choose one of {', '.join(RESIZES)}.")
  return RESIZES[how]


def bicubic_pil(image, size):
  return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def bilinear_pil(image, size):
  return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def tf1_bilinear(image, size):
  """out[i] samples the input at i * (in / out); rounded to whole grey levels at the end."""
  x = np.asarray(image, np.float32)
  for axis in (0, 1):
    source = np.arange(size, dtype=np.float32) * np.float32(x.shape[axis] / size)
    low = np.minimum(source.astype(np.int32), x.shape[axis] - 1)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    weight = (source - low).reshape((-1,) + (1,) * (x.ndim - axis - 1))
    below, above = np.take(x, low, axis), np.take(x, high, axis)
    x = below + (above - below) * weight
  return np.rint(x).astype(np.uint8)


def short_side(image, size, *, fraction):
  """fraction: of the short side that the centre crop keeps; 0.9 for ViT and Swin in timm 0.6."""
  return centre(to_short(image, int(size / fraction), Image.Resampling.BICUBIC), size)


def short_side_256(image, size):
  return centre(to_short(image, of_256(size), Image.Resampling.BILINEAR), size)


def squash_256(image, size):
  return centre(image.resize((of_256(size),) * 2, Image.Resampling.BICUBIC), size)


def of_256(size):
  """The side of what a crop of `size` is taken from: 256 for 224."""
  return round(size * 256 / 224)


def to_short(image, short, filter):
  """The Pillow image with `short` as its short side; rounded as torchvision rounds."""
  width, height = image.size
  if width <= height:
    width, height = short, int(short * height / width)
  else:
    width, height = int(short * width / height), short
  return image.resize((width, height), filter)


def centre(image, size):
  """uint8 [size, size] or [size, size, 3]; offsets are rounded as torchvision rounds them."""
  width, height = image.size
  left, top = round((width - size) / 2.0), round((height - size) / 2.0)
  return np.asarray(image.crop((left, top, left + size, top + size)))


RESIZES = {
  "bicubic_pil": bicubic_pil,
  "bilinear_pil": bilinear_pil,
  "tf1_bilinear": tf1_bilinear,
  "short_side": functools.partial(short_side, fraction=0.9),
  "short_side_875": functools.partial(short_side, fraction=0.875),
  "short_side_256": short_side_256,
  "squash_256": squash_256,
}


def decode(path, *, exif):
  """Pillow image of mode L or RGB from the file at `path` (an epath.Path).

  Grey stays L; palettes, alpha (dropped), CMYK and other colour spaces become RGB; 16-bit grey is
  scaled to 8 bits. exif: turn the image as its camera tag says (VTAB's references do not).
  Raises ValueError naming the file when it cannot be read.
  """
  try:
    with path.open("rb") as file:
      image = Image.open(file)
      image.load()
      if exif:
        image = ImageOps.exif_transpose(image)
      return eight_bit(image)
  except UNREADABLE as error:
    raise cannot_read(path, error) from error


def cannot_read(path, error):
  """The ValueError that names the file."""
  return ValueError(
    f"Cannot read the image {path} ({error}); replace the file or take it out of the data set."
  )


def eight_bit(image):
  """The same picture in mode L or RGB."""
  if image.mode in ("L", "RGB"):
    return image
  if image.mode in ("1", "LA", "La"):
    return image.convert("L") if image.mode == "1" else image.convert("LA").getchannel("L")
  if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
      raise ValueError(f"grey levels {levels.min()}..{levels.max()} are not 16-bit")
    return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
  if image.mode == "F":
    raise ValueError("floating-point pixels have no agreed range")
  if image.mode in ("P", "PA") and "transparency" in image.info:
    image = image.convert("RGBA")
  return image.convert("RGB")
