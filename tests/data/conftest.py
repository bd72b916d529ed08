"""A picture, and timm's random functions replayed from given draws."""

import statistics

import numpy as np
import pytest
from PIL import Image


class Replay:
  """Python's and NumPy's random functions as timm calls them, from uniform draws in [0, 1)."""

  def __init__(self, draw):
    self.random = draw

  def gauss(self, mean, std):
    return statistics.NormalDist(mean, std).inv_cdf(self.random())

  def uniform(self, low, high):
    return low + (high - low) * self.random()

  def randint(self, low, high):
    return low + int(self.random() * (high - low + 1))

  def choice(self, values, size=None, replace=True, p=None):
    if size is None:
      return values[int(self.random() * len(values))]
    return [values[int(self.random() * len(values))] for _ in range(size)]


@pytest.fixture
def timm(monkeypatch):
  """A function draw -> timm's (auto_augment, transforms) with all their draws taken from it."""
  pytest.importorskip("timm")
  from timm.data import auto_augment, transforms

  def replayed(draw):
    monkeypatch.setattr(auto_augment, "random", Replay(draw))
    monkeypatch.setattr(auto_augment.np.random, "choice", Replay(draw).choice)
    monkeypatch.setattr(transforms, "random", Replay(draw))
    return auto_augment, transforms

  return replayed


@pytest.fixture(scope="session")
def picture():
  """A function (width, height) -> a smooth image in colour with levels 20 to 235."""

  def draw(width=40, height=32):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + c)) * np.cos(y / (7 - c)) for c in range(3)]
    return Image.fromarray(np.rint(127.5 + 107 * np.stack(waves, -1)).astype(np.uint8))

  return draw


@pytest.fixture(scope="session")
def uniform():
  """A function seed -> a function () -> [0, 1)."""
  return lambda seed: np.random.default_rng(seed).random
