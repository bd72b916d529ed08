"""Random views of a batch, made on the device. Each image has a key of its own, made from its
place in the global batch, so that sharding changes nothing."""

import functools
import math

import jax
import jax.numpy as jnp

from peft_jax.data import contrast

AREA = (0.08, 1.0)  # of the crop, as a fraction of the image
RATIO = (3 / 4, 4 / 3)  # width / height of the crop, log-uniform
TRIES = 10


def augment(images, key, how, first=0):
  """`images` [B, H, W, C], 0..255, uint8 or float, under `how`; same shape and dtype.

  how: "none"; "flip" (left-right with probability 1/2); "crop_flip" (a crop of 8 to 100 % of the
    area, ratio 3/4 to 4/3, resized bicubically with antialiasing, then flip); "contrast" (the
    same, then the colours of `data.contrast`: GPS's views).
  first: place of images[0] in the global batch, for a device that holds only its own share.
  """
  if how not in AUGMENTS:
    raise ValueError(f"There is no augment '{how}'; choose one of {', '.join(AUGMENTS)}.")
  images = jnp.asarray(images)
  if how == "none":
    return images
  return _views(images, key, jnp.asarray(first, jnp.uint32), how=how)


@functools.partial(jax.jit, static_argnames="how")
def _views(images, key, first, *, how):
  places = first + jnp.arange(images.shape[0], dtype=jnp.uint32)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
  return jax.vmap(AUGMENTS[how])(images, keys)


def flip(image, key):
  return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def crop_flip(image, key):
  box_key, flip_key = jax.random.split(key)
  top, left, height, width = draw_box(box_key, *image.shape[:2])
  return flip(cut(image, top, left, height, width), flip_key)


def contrast_view(image, key):
  crop_key, colour_key = jax.random.split(key)
  view = contrast.colours(crop_flip(image, crop_key).astype(jnp.float32), colour_key)
  return stored(view, image.dtype)


def draw_box(key, height, width):
  """(top, left, height, width) of a crop, float32 pixels, as torchvision's RandomResizedCrop.

  The first of ten draws that fits is taken, else the whole image. Bounds are fractions of a pixel,
  where torchvision rounds to whole ones.
  """
  u = jax.random.uniform(key, (2 * TRIES + 2,), jnp.float32)
  log_low, log_high = math.log(RATIO[0]), math.log(RATIO[1])
  area = (AREA[0] + (AREA[1] - AREA[0]) * u[:TRIES]) * (height * width)
  ratio = jnp.exp(log_low + (log_high - log_low) * u[TRIES:-2])
  widths, heights = jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)
  fits = (widths <= width) & (heights <= height)
  pick = jnp.argmax(fits)
  crop_width = jnp.where(fits[pick], widths[pick], float(width))
  crop_height = jnp.where(fits[pick], heights[pick], float(height))
  top, left = u[-2] * (height - crop_height), u[-1] * (width - crop_width)
  return top, left, crop_height, crop_width


def cut(image, top, left, height, width):
  """The box stretched to the image's own shape: bicubic, antialiased, within 0..255.

  Within about one grey level of Pillow's resize(box=...).
  """
  scale = jnp.stack([image.shape[0] / height, image.shape[1] / width])
  view = jax.image.scale_and_translate(
    image.astype(jnp.float32),
    image.shape,
    (0, 1),
    scale,
    -jnp.stack([top, left]) * scale,
    method="cubic",
    antialias=True,
  )
  view = jnp.clip(view, 0.0, 255.0)
  return stored(view, image.dtype)


def stored(view, dtype):
  """`view`, floating point, in the type of the images that it was made of."""
  return (jnp.round(view) if jnp.issubdtype(dtype, jnp.integer) else view).astype(dtype)


AUGMENTS = {"none": None, "flip": flip, "crop_flip": crop_flip, "contrast": contrast_view}
