"""Position tables for another number of patches: four conventions that disagree.

    bicubic_aa        cubic a = -0.5, widened when shrinking, renormalised at the edges:
                      timm today on state dicts, jax.image.resize("cubic")
    bicubic_clamped   cubic a = -0.75, edge-clamped taps, never widened: timm up to 0.6, MAE,
                      Hugging Face's DINOv2, torch's interpolate("bicubic")
    bilinear          half-pixel centres, never widened: timm on .npz files, SETR
    bilinear_corners  corner patches stay corners: Google, big_vision, VPT (scipy's zoom, order 1)

On tables of unit variance they differ by 0.2 to 3. Each is separable: new = W g W^T.
"""

import math

import numpy as np


def cubic(x, a):
  """Keys' convolution kernel of support 2."""
  x = np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def centres(old, new):
  """Where the centre of each new cell lies, counted in old cells."""
  return (np.arange(new) + 0.5) * old / new - 0.5


def bicubic_aa(old, new):
  widening = max(1.0, old / new)
  w = cubic((centres(old, new)[:, None] - np.arange(old)) / widening, -0.5)
  return w / w.sum(1, keepdims=True)


def bicubic_clamped(old, new):
  return clamped(centres(old, new), old, lambda x: cubic(x, -0.75))


def bilinear(old, new):
  return clamped(centres(old, new), old, lambda x: np.maximum(0.0, 1 - np.abs(x)))


def bilinear_corners(old, new):
  at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
  return clamped(at, old, lambda x: np.maximum(0.0, 1 - np.abs(x)))


def clamped(at, old, kernel):
  """Rows of weights for the points `at`; a tap outside counts for the cell at that edge."""
  w = np.zeros((len(at), old))
  for row, x in enumerate(at):
    taps = math.floor(x) + np.arange(-1, 3)
    np.add.at(w[row], np.clip(taps, 0, old - 1), kernel(x - taps))
  return w


HOW = {f.__name__: f for f in (bicubic_aa, bicubic_clamped, bilinear, bilinear_corners)}


def split(table):
  """(prefix rows, grid side) of a table [1, M, D] with a square grid and at most two prefix rows.

  No two numbers of rows go with the same M: squares differ by 1 or 2 nowhere but at 0 and 1.
  """
  rows = table.shape[1]
  for prefix in (0, 1, 2):
    side = math.isqrt(rows - prefix)
    if side and side * side == rows - prefix:
      return prefix, side
  raise ValueError(f"a position table of {rows} rows is no square grid, with or without a class "
                   "token's row.")


def resize(table, side, how="bicubic_aa"):
  """The table [1, prefix + n * n, D] with its grid resized to side x side, in float32.

  The prefix row stays as it is. Raises ValueError for an unknown `how` and for a grid that is not
  square.
  """
  if how not in HOW:
    raise ValueError(f"table={how!r} is none of {', '.join(HOW)}.")
  if table.ndim != 3 or table.shape[0] != 1:
    raise ValueError(f"a position table is [1, rows, width], not {list(table.shape)}.")
  prefix, old = split(table)
  if side == old:
    return table
  w = HOW[how](old, side).astype(np.float32)
  grid = table[0, prefix:].reshape(old, old, -1)
  grid = np.einsum("ai,ijd->ajd", w, grid, optimize=True)
  grid = np.einsum("bj,ajd->abd", w, grid, optimize=True).reshape(1, side * side, -1)
  return np.concatenate([table[:, :prefix], grid], axis=1)
