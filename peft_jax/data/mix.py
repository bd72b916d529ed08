"""What is done on the device to a batch of training views: mixup or cutmix, and random erasing.

    mixup     x = s x1 + (1 - s) x2                     s ~ Beta(mixup, mixup)
    cutmix    x = x1, within a box of area (1 - s) x2   s ~ Beta(cutmix, cutmix)

x2 is the batch in reverse order, s one number for the whole batch, and the loss is
s L(x, y1) + (1 - s) L(x, y2): the soft targets of timm's Mixup, mode "batch", probability 1
(timm/data/mixup.py). Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899.
Erasing is timm's RandomErasing, mode "pixel" (timm/data/random_erasing.py); Zhong et al. 2020,
arXiv:1708.04896. Mixing comes before normalisation and erasing after it, as in timm's prefetching
loader, which the released codes of SSF and SAN use.
"""

import math

import jax
import jax.numpy as jnp

from peft_jax.data.augment import TRIES

ERASED = (0.02, 1 / 3)  # of the image's area
ASPECT = (0.3, 1 / 0.3)  # height / width of what is erased, log-uniform


def mix(images, key, mixup=0.0, cutmix=0.0):
  """(mixed float32 images [B, H, W, C], share: float32 scalar in 0..1 of the images' own labels).

  images: any range; image i is mixed with image B - 1 - i, and a middle one with itself. mixup,
  cutmix: alphas; 0 is off, and where both are on one of them is drawn, 1/2 each. With both off
  the images come back as they are and the share is None.
  """
  if not mixup and not cutmix:
    return images, None
  kind_key, share_key, box_key = jax.random.split(key, 3)
  images = jnp.asarray(images).astype(jnp.float32)
  others = images[::-1]
  cut = jax.random.bernoulli(kind_key) if mixup and cutmix else jnp.asarray(bool(cutmix))
  alpha = jnp.where(cut, jnp.float32(cutmix), jnp.float32(mixup))
  share = jax.random.beta(share_key, alpha, alpha)
  blended = share * images + (1 - share) * others
  height, width = images.shape[1:3]
  inside = within(height, width, *cut_box(box_key, share, height, width))
  pasted = jnp.where(inside[None, :, :, None], others, images)
  # What cutmix kept: its box may reach over the border.
  kept = 1 - inside.sum(dtype=jnp.float32) / (height * width)
  return jnp.where(cut, pasted, blended), jnp.where(cut, kept, share)


def cut_box(key, share, height, width):
  """int32 (top, bottom, left, right): sqrt(1 - share) of each side about a random pixel."""
  side = jnp.sqrt(1 - share)
  found = []
  for size, one in zip((height, width), jax.random.split(key), strict=True):
    cut = (size * side).astype(jnp.int32)
    middle = jax.random.randint(one, (), 0, size)
    found += [jnp.clip(middle - cut // 2, 0, size), jnp.clip(middle + (cut + 1) // 2, 0, size)]
  return tuple(found)


def within(height, width, top, bottom, left, right):
  """bool [height, width]: rows top..bottom-1, columns left..right-1."""
  rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
  return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def erase(images, key, probability, first=0):
  """Normalised images [B, H, W, C] with one random box of some of them standard normal noise.

  probability: 0..1 for each image. The box: 2 % to a third of the area, height / width 0.3 to
    1/0.3, the first of ten draws that fits, else none.
  first: place of images[0] in the global batch, for a device that holds only its own share.
  """
  if not probability:
    return images
  places = jnp.asarray(first, jnp.uint32) + jnp.arange(images.shape[0], dtype=jnp.uint32)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)

  def one(image, key):
    take_key, box_key, noise_key = jax.random.split(key, 3)
    inside = within(*image.shape[:2], *erased_box(box_key, *image.shape[:2]))
    noise = jax.random.normal(noise_key, image.shape, image.dtype)
    erased = inside & jax.random.bernoulli(take_key, probability)
    return jnp.where(erased[:, :, None], noise, image)

  return jax.vmap(one)(images, keys)


def erased_box(key, height, width):
  """int32 (top, bottom, left, right); empty where no draw is smaller than the image both ways."""
  u = jax.random.uniform(key, (2 * TRIES + 2,), jnp.float32)
  log_low, log_high = math.log(ASPECT[0]), math.log(ASPECT[1])
  area = (ERASED[0] + (ERASED[1] - ERASED[0]) * u[:TRIES]) * (height * width)
  aspect = jnp.exp(log_low + (log_high - log_low) * u[TRIES:-2])
  highs = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
  wides = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
  fits = (highs < height) & (wides < width)
  pick = jnp.argmax(fits)
  high, wide = (jnp.where(fits[pick], sides[pick], 0) for sides in (highs, wides))
  top = jnp.floor(u[-2] * (height - high + 1).astype(jnp.float32)).astype(jnp.int32)
  left = jnp.floor(u[-1] * (width - wide + 1).astype(jnp.float32)).astype(jnp.int32)
  top, left = jnp.minimum(top, height - high), jnp.minimum(left, width - wide)
  return top, top + high, left, left + wide
