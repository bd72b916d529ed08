"""Resized position tables against independent programs for each of the four conventions."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from peft_jax.weights import table

SIZES = [(14, 24), (16, 7), (37, 16), (4, 1), (1, 3)]


def random_table(side, prefix=1, width=3):
  rows = prefix + side * side
  return np.random.RandomState(side).standard_normal((1, rows, width)).astype(np.float32)


def grid(t, side, prefix=1):
  return t[0, prefix:].reshape(side, side, -1)


@pytest.mark.parametrize("old, new", SIZES)
@pytest.mark.parametrize("how, method, antialias", [
  ("bicubic_aa", "cubic", True), ("bilinear", "linear", False)])
def test_against_jax(how, method, antialias, old, new):
  t = random_table(old)
  want = jax.image.resize(grid(t, old), (new, new, 3), method, antialias=antialias)
  # JAX counts the positions themselves in float32.
  np.testing.assert_allclose(grid(table.resize(t, new, how), new), want, atol=1e-5)


@pytest.mark.parametrize("old, new", SIZES)
def test_corners_against_scipy(old, new):
  t = random_table(old)
  want = scipy.ndimage.zoom(grid(t, old), (new / old, new / old, 1), order=1)
  assert want.shape == (new, new, 3)
  np.testing.assert_allclose(grid(table.resize(t, new, "bilinear_corners"), new), want, atol=2e-6)


@pytest.mark.parametrize("old, new", SIZES)
def test_clamped_against_sixteen_taps(old, new):
  """PyTorch's interpolate(mode="bicubic"), written out point by point."""
  t = random_table(old)
  g = grid(t, old).astype(np.float64)

  def coefficients(f, a=-0.75):
    near = [((a + 2) * x - (a + 3)) * x * x + 1 for x in (f, 1 - f)]
    far = [((a * x - 5 * a) * x + 8 * a) * x - 4 * a for x in (f + 1, 2 - f)]
    return [far[0], *near, far[1]]

  want = np.zeros((new, new, 3))
  for i in range(new):
    for j in range(new):
      y, x = (i + 0.5) * old / new - 0.5, (j + 0.5) * old / new - 0.5
      y0, x0 = int(np.floor(y)), int(np.floor(x))
      for dy, wy in zip(range(-1, 3), coefficients(y - y0), strict=True):
        for dx, wx in zip(range(-1, 3), coefficients(x - x0), strict=True):
          row, column = np.clip([y0 + dy, x0 + dx], 0, old - 1)
          want[i, j] += wy * wx * g[row, column]
  got = grid(table.resize(t, new, "bicubic_clamped"), new)
  np.testing.assert_allclose(got, want, atol=4e-6)


def test_the_conventions_differ():
  t = random_table(14)
  out = [table.resize(t, 24, how) for how in table.HOW]
  for i, a in enumerate(out):
    for b in out[:i]:
      assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize("how", table.HOW)
@pytest.mark.parametrize("prefix", [0, 1])
def test_prefix_rows_type_and_constants_stay(how, prefix):
  t = random_table(5, prefix)
  out = table.resize(t, 8, how)
  assert out.shape == (1, prefix + 64, 3) and out.dtype == np.float32
  np.testing.assert_array_equal(out[:, :prefix], t[:, :prefix])
  np.testing.assert_allclose(table.resize(np.ones_like(t), 8, how), 1, atol=1e-6)
  assert table.resize(t, 5, how) is t


def test_refusals():
  with pytest.raises(ValueError, match="7 rows"):
    table.resize(np.zeros((1, 7, 2), np.float32), 2)
  with pytest.raises(ValueError, match="bicubic_aa, bicubic_clamped"):
    table.resize(random_table(3), 2, "lanczos")
