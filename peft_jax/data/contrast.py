"""The views of a contrastive loss: colour jitter and grey, after the random crop and flip.

As GPS's code asks torchvision for them: with probability 0.8 brightness, contrast and saturation by
factors of 0.6 to 1.4 and hue by -0.1 to 0.1 turns, in random order; with probability 0.2 grey.
Images are float 0..255 here, [H, W, 3]; torchvision rounds to whole levels after each step.
"""

import jax
import jax.numpy as jnp

FACTOR, TURN = 0.4, 0.1
JITTER, GREY = 0.8, 0.2  # probabilities
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L


def colours(image, key):
  """`image` under the jitter and the grey that `key` draws."""
  which, amounts, order, grey_key = jax.random.split(key, 4)
  drawn = jax.random.uniform(amounts, (4,), minval=-1.0, maxval=1.0)
  jittered = image
  for place in jax.random.permutation(order, 4):
    jittered = jax.lax.switch(place, STEPS, jittered, drawn[place])
  image = jnp.where(jax.random.bernoulli(which, JITTER), jittered, image)
  return jnp.where(jax.random.bernoulli(grey_key, GREY), grey(image), image)


def grey(image):
  """The luma of each pixel, on three channels."""
  luma = image @ jnp.asarray(LUMA, image.dtype)
  return jnp.broadcast_to(luma[..., None], image.shape)


def blended(image, other, factor):
  """other + factor (image - other), within 0..255."""
  return jnp.clip(other + factor * (image - other), 0.0, 255.0)


def brightness(image, amount):
  return blended(image, jnp.zeros_like(image), 1 + FACTOR * amount)


def contrast(image, amount):
  return blended(image, jnp.full_like(image, jnp.mean(grey(image))), 1 + FACTOR * amount)


def saturation(image, amount):
  return blended(image, grey(image), 1 + FACTOR * amount)


def hue(image, amount):
  """Turns the hue of hue, saturation, value by TURN * amount of a circle."""
  value, least = jnp.max(image, -1), jnp.min(image, -1)
  chroma = value - least
  red, green, blue = image[..., 0], image[..., 1], image[..., 2]
  safe = jnp.where(chroma > 0, chroma, 1.0)
  sixth = jnp.where(
    value == red, (green - blue) / safe,
    jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
  ) + 6 * TURN * amount
  # Each channel falls from `value` by as much of the chroma as its distance on the circle tells.
  offsets = jnp.asarray((5.0, 3.0, 1.0), image.dtype).reshape(1, 1, 3)
  distance = jnp.mod(offsets + sixth[..., None], 6.0)
  part = jnp.clip(jnp.minimum(distance, 4.0 - distance), 0.0, 1.0)
  return value[..., None] - chroma[..., None] * part


STEPS = (brightness, contrast, saturation, hue)
