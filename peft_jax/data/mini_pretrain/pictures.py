"""64 x 64 colour pictures put together from everything in mini_vtab.

A background (a view of a photograph's left half, a gradient or stripes) and up to four objects on
it: solids, sprites, clothes, digits, round pieces of photographs, in random colours. Only images of
mini_vtab's training splits are used, and none of their labels. Picture i is a function of i alone,
up to the last bit of the mathematics library.
"""

import functools

import numpy as np
from PIL import Image

from peft_jax.data.mini_vtab import clevr, draws, dsprites, stored, texture

SIDE = 64
SEED = 2  # of these pictures; the tasks' is 1
DRAWS = 24  # numbers for the background and for each object


def picture(index):
  """uint8 [64, 64, 3]."""
  u = draws.uniform(DRAWS * 6, SEED, index).reshape(6, DRAWS)
  canvas = background(u[0])
  for row in u[2 : 2 + int(u[1, 0] * 5)]:
    paint(canvas, row)
  gain, offset = 0.7 + 0.6 * u[1, 1], 40 * u[1, 2] - 20
  canvas = (canvas - 127.5) * gain + 127.5 + offset
  if u[1, 3] < 0.2:
    canvas[:] = canvas.mean(2, keepdims=True)
  return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def background(u):
  """float64 [64, 64, 3]: a photograph in half of all cases, else a gradient or stripes."""
  first, second = colour(u[0:3]), colour(u[3:6])
  if u[6] < 0.55:
    return tinted(view(u[7:12], SIDE), first, second, u[12])
  angle = 2 * np.pi * u[7]
  along = (np.cos(angle) * grid()[0] + np.sin(angle) * grid()[1]) / SIDE
  if u[6] < 0.8:
    share = np.clip(0.5 + along, 0, 1)
  else:
    share = 0.5 + 0.5 * np.sin(2 * np.pi * along * (1 + 7 * u[8]))
    share = np.rint(share) if u[9] < 0.5 else share
  return first + share[:, :, None] * (second - first)


def paint(canvas, u):
  """Puts one object on `canvas`."""
  size = int(12 + 40 * u[0] ** 1.5)
  x, y = SIDE * u[1], SIDE * u[2]
  kind, inside = int(u[3] * 5), colour(u[4:7])
  if kind == 0:
    clevr.solid(canvas, x, y, size / 2, int(u[7] * 3), int(u[8] * len(clevr.COLOURS)), u[9] < 0.5)
    return
  if kind == 1:  # a sprite with a soft edge
    index = int(u[7] * 3) * 245760 + 5 * 40960 + int(u[8] * 40) * 1024 + 16 * 32 + 16
    mask = dsprites.picture(index)[20:44, 20:44] / 255.0
  elif kind == 2:
    images = _images("fashion")
    mask = images[int(u[7] * len(images))] / 255.0
  elif kind == 3:
    images = _images("digits")
    mask = images[int(u[7] * len(images))] / 255.0
  else:  # a round piece of a photograph
    mask = (np.hypot(*grid()) < SIDE / 2).astype(np.float64)
  mask = resized(mask, size)
  mask = mask[:, ::-1] if u[9] < 0.5 else mask
  look = np.broadcast_to(inside, (size, size, 3))
  if kind == 4:
    look = tinted(view(u[10:15], size), inside, colour(u[15:18]), u[18])
  top, left = int(y) - size // 2, int(x) - size // 2
  rows = slice(max(top, 0), min(top + size, SIDE))
  columns = slice(max(left, 0), min(left + size, SIDE))
  part = (slice(rows.start - top, rows.stop - top), slice(columns.start - left,
                                                          columns.stop - left))
  patch = canvas[rows, columns]
  patch += mask[part][:, :, None] * (look[part] - patch)


def view(u, side):
  """float64 [side, side] in 0..1: a square piece of a photograph's left half, turned."""
  photo = texture.photographs()[int(u[0] * len(texture.CLASSES))]
  height, width = photo.shape
  room = width // 2 - texture.GAP // 2
  cut = int(24 + (min(room, height) - 24) * u[1] ** 2)
  top, left = int(u[2] * (height - cut + 1)), int(u[3] * (room - cut + 1))
  piece = np.rot90(photo[top : top + cut, left : left + cut], int(u[4] * 4))
  return resized(piece / 255.0, side)


def tinted(grey, first, second, u):
  """[H, W, 3] of grey [H, W] in 0..1: as it is, in one colour, or between two."""
  grey = grey[:, :, None]
  if u < 0.4:
    return np.repeat(255.0 * grey, 3, 2)
  return grey * (0.5 * first + 127.5) if u < 0.7 else first + grey * (second - first)


def colour(u):
  return 255.0 * u


def resized(array, side):
  image = Image.fromarray(array.astype(np.float32), mode="F")
  return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), np.float64)


@functools.cache
def grid():
  """x and y of the pixels, from the middle."""
  middle = np.arange(SIDE) - (SIDE - 1) / 2
  return np.broadcast_to(middle[None], (SIDE, SIDE)), np.broadcast_to(middle[:, None], (SIDE, SIDE))


@functools.cache
def _images(kind):
  return stored.arrays(f"{kind}.npz")["train_images"]
