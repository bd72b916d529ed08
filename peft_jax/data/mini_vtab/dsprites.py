"""mini_dsprites: dSprites drawn anew from its latent index, 64 x 64, values 0 and 255.

    i = 245760 shape + 40960 scale + 1024 orientation + 32 x + y

shape 0..2 (square, ellipse, heart), scale 0..5, orientation 0..39, x and y 0..31. Indices, split
and labels are VTAB's; the pixels are not dSprites' own. The angle runs over each shape's own
period, so that a picture has one orientation.
"""

import numpy as np

SIDE = 64
MARGIN = 14  # pixels between the border and the outermost centres
PERIODS = (np.pi / 2, np.pi, 2 * np.pi)  # of square, ellipse, heart


def location(indices):
  """int32: floor(x / 2), 16 classes."""
  return (np.asarray(indices) // 32 % 32 // 2).astype(np.int32)


def orientation(indices):
  """int32: floor(orientation / 2.5), 16 classes: even ones hold 3 orientations, odd ones 2."""
  return (np.asarray(indices) // 1024 % 40 * 2 // 5).astype(np.int32)


def picture(index):
  """uint8 [64, 64] of one latent index."""
  shape, scale = index // 245760, index // 40960 % 6
  step = (SIDE - 2 * MARGIN) / 31
  centre_x, centre_y = (MARGIN + place * step for place in (index // 32 % 32, index % 32))
  angle = PERIODS[shape] * (index // 1024 % 40) / 40
  # Rounded, so that mathematics libraries that differ in the last digit draw the same picture.
  cos, sin = np.round([np.cos(angle), np.sin(angle)], 12) / (9 * (0.5 + 0.1 * scale))
  dx = np.arange(SIDE)[None, :] + 0.5 - centre_x
  dy = np.arange(SIDE)[:, None] + 0.5 - centre_y
  u, v = cos * dx + sin * dy, cos * dy - sin * dx
  if shape == 0:
    inside = np.maximum(np.abs(u), np.abs(v)) <= 1
  elif shape == 1:
    inside = u * u / (1.1 * 1.1) + v * v / (0.55 * 0.55) <= 1
  else:
    u, v = 1.2 * u, 0.29 - 1.2 * v  # its centre of mass on the sprite's place
    ring = u * u + v * v - 1
    inside = ring * ring * ring <= u * u * v * v * v
  return inside.astype(np.uint8) * np.uint8(255)
