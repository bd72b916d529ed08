"""mini_texture: 48 x 48 grey crops of eight photographs; what is on the photograph is the class.

Training crops come from the left half, test crops from the right half, 16 pixels apart. Each crop
is standardised, given a random contrast and brightness and a random quarter turn, so that neither
brightness nor orientation tells the class.
"""

import functools

import numpy as np

from peft_jax.data.mini_vtab import draws, stored

CLASSES = ("brick", "grass", "gravel", "retina", "coffee", "hubble", "ihc", "coins")
SHORT_SIDE = 400  # of the stored photographs, pixels
SIDE = 48  # of a crop, pixels
GAP = 16  # between the halves, pixels
COUNTS = {"train": 1000, "test": 2000}
CONTRAST = (30.0, 60.0)  # standard deviation, grey levels
BRIGHTNESS = (90.0, 160.0)  # mean, grey levels
SEED = 1  # of the suite


@functools.cache
def photographs():
  return [np.asarray(stored.picture(f"texture_{name}.png")) for name in CLASSES]


@functools.cache
def split(name):
  """(uint8 [N, 48, 48], int32 [N]) of "train" (train800 then val200) or "test"."""
  count = COUNTS[name]
  u = draws.uniform(6 * count, SEED, list(COUNTS).index(name), 0).reshape(count, 6)
  labels = (u[:, 0] * len(CLASSES)).astype(np.int32)
  images = np.empty((count, SIDE, SIDE), np.uint8)
  for row, label in enumerate(labels):
    photo = photographs()[label]
    height, width = photo.shape
    room = width // 2 - GAP // 2 - SIDE + 1
    top = int(u[row, 1] * (height - SIDE + 1))
    left = int(u[row, 2] * room) + (0 if name == "train" else width - width // 2 + GAP // 2)
    crop = photo[top : top + SIDE, left : left + SIDE].astype(np.int64)
    total, squares = int(crop.sum()), int((crop * crop).sum())  # exact on every machine
    mean = total / crop.size
    deviation = max(squares / crop.size - mean * mean, 1.0) ** 0.5
    contrast = CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * u[row, 3]
    brightness = BRIGHTNESS[0] + (BRIGHTNESS[1] - BRIGHTNESS[0]) * u[row, 4]
    crop = (crop - mean) / deviation * contrast + brightness
    images[row] = np.rot90(np.clip(np.rint(crop), 0, 255), int(u[row, 5] * 4))
  return images, labels
