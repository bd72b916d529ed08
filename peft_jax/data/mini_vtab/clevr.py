"""mini_clevr: 64 x 64 colour scenes of 3 to 10 solids on a plane, seen from above the ground.

Every scene has a depth per object (7 near .. 14 far): the pixel radius falls with depth, the
ground line rises. "count": depths are uniform. "dist": the class is uniform, the nearest depth is
uniform in the class's bin and every other object is at least 0.3 farther.
Labels are VTAB's: objects - 3, and the number of thresholds strictly below the nearest depth.
A scene is a function of (seed, split, task, index) alone.
"""

import dataclasses

import numpy as np

from peft_jax.data.mini_vtab import draws

SIDE = 64
THRESHOLDS = (8.0, 8.5, 9.0, 9.5, 10.0)
BINS = ((7.0, 8.0), (8.0, 8.5), (8.5, 9.0), (9.0, 9.5), (9.5, 10.0), (10.0, 11.0))
FAR = 14.0
COUNTS = {"train": 1000, "test": 2000}
TASKS = ("count", "dist")
TRIES = 24  # places tried for an object before the one farthest from the others is taken
COLOURS = np.asarray(  # of the objects: grey, red, blue, green, brown, purple, cyan, yellow
  [
    (87, 87, 87),
    (173, 35, 35),
    (42, 75, 215),
    (29, 105, 20),
    (129, 74, 25),
    (129, 38, 192),
    (41, 208, 208),
    (255, 238, 51),
  ],
  np.float64,
)
SEED = 1  # of the suite


@dataclasses.dataclass(frozen=True)
class Scene:
  """depth, radius [n]; centre [n, 2] as (x, y), pixels; look [n, 3] as (solid, colour, shiny).

  light: grey level of the background in the middle; slope: its change from top to bottom.
  """

  depth: np.ndarray
  radius: np.ndarray
  centre: np.ndarray
  look: np.ndarray
  light: float
  slope: float


def label(task, depths):
  """VTAB's label of a scene whose objects have these depths (pixel_coords[2])."""
  if task == "count":
    return len(depths) - 3
  return sum(threshold < min(depths) for threshold in THRESHOLDS)


def depths(task, split, index):
  """float64 [n], 3 to 10 of them: all a label needs."""
  u = draws.uniform(13, SEED, list(COUNTS).index(split), TASKS.index(task), index, 0)
  n = 3 + int(u[0] * 8)
  if task == "count":
    return 7 + (FAR - 7) * u[3 : 3 + n]
  low, high = BINS[int(u[1] * len(BINS))]
  nearest = low + (high - low) * u[2]
  rest = nearest + 0.3 + (FAR - nearest - 0.3) * u[3 : 2 + n]
  return np.concatenate([[nearest], rest])


def scene(task, split, index):
  depth = depths(task, split, index)
  n = len(depth)
  words = (SEED, list(COUNTS).index(split), TASKS.index(task), index, 1)
  u = draws.uniform(2 + n * (4 + TRIES), *words)
  light, slope = 120 + 60 * u[0], -40 + 80 * u[1]
  looks, places = u[2 : 2 + 4 * n].reshape(n, 4), u[2 + 4 * n :].reshape(n, TRIES)
  radius = np.where(looks[:, 3] < 0.5, 34.0, 52.0) / depth
  y = 16 + 294 / depth - radius  # stands on the ground line
  x = radius[:, None] + 1 + (SIDE - 2 * radius[:, None] - 2) * places
  centre = np.empty((n, 2))
  for i in range(n):
    # Room to the nearest object placed so far, as a fraction of touching distance.
    dx, dy = x[i][:, None] - centre[None, :i, 0], y[i] - centre[None, :i, 1]
    room = np.sqrt(dx * dx + dy * dy) / (radius[i] + radius[None, :i])
    room = room.min(1, initial=9.0)
    free = room >= 1.0
    centre[i] = x[i, np.argmax(free) if free.any() else np.argmax(room)], y[i]
  look = (looks[:, :3] * (3, len(COLOURS), 2)).astype(np.int32)
  return Scene(depth, radius, centre, look, light, slope)


def picture(task, split, index):
  """uint8 [64, 64, 3] of one scene."""
  made = scene(task, split, index)
  canvas = np.empty((SIDE, SIDE, 3))
  canvas[:] = (made.light + made.slope * ((np.arange(SIDE) - 31.5) / SIDE))[:, None, None]
  for i in np.argsort(-made.depth, kind="stable"):
    solid(canvas, *made.centre[i], made.radius[i], *made.look[i])
  words = (SEED, list(COUNTS).index(split), TASKS.index(task), index, 2)
  bytes_ = draws.raw(SIDE * SIDE * 3 // 2, *words).astype("<u8").view(np.uint8)
  # The sum of four bytes has mean 510 and deviation 147.8: noise of two grey levels.
  noise = bytes_.reshape(SIDE, SIDE, 3, 4).sum(-1, dtype=np.int32) - 510
  return np.clip(np.rint(canvas + noise * (2 / 147.8)), 0, 255).astype(np.uint8)


def solid(canvas, x, y, r, kind, colour, shiny):
  """Paints one object over `canvas`, with a soft edge one pixel wide."""
  left, right = max(int(x - r) - 1, 0), min(int(x + r) + 3, SIDE)
  top, bottom = max(int(y - r) - 1, 0), min(int(y + r) + 3, SIDE)
  dx = np.arange(left, right)[None, :] + 0.5 - x
  dy = np.arange(top, bottom)[:, None] + 0.5 - y
  shade = 1.0 - 0.3 * (dx + dy) / r
  if kind == 0:  # cube: a light top face, a dark side
    outside = np.maximum(np.abs(dx), np.abs(dy)) - 0.85 * r
    shade = np.where(dy < -0.4 * r, 1.25, np.where(dx > 0.35 * r, 0.65, 0.95))
  elif kind == 1:  # sphere
    outside = np.sqrt(dx * dx + dy * dy) - r
  else:  # cylinder: a light lid
    outside = np.maximum(np.abs(dx) - 0.7 * r, np.abs(dy) - 0.95 * r)
    shade = np.where(dy < -0.55 * r, 1.25, 1.0 - 0.5 * dx / r)
  pixels = COLOURS[colour] * shade[:, :, None]
  if shiny:
    hx, hy = dx + 0.35 * r, dy + 0.35 * r
    spot = np.maximum(0.0, 1.0 - np.sqrt(hx * hx + hy * hy) / (0.4 * r))
    pixels = pixels + 170.0 * spot[:, :, None]
  cover = np.clip(0.5 - outside, 0.0, 1.0)[:, :, None]
  patch = canvas[top:bottom, left:right]
  patch += cover * (np.clip(pixels, 0.0, 255.0) - patch)
