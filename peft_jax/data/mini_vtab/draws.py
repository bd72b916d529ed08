"""Uniform numbers that are the same on every machine and under every NumPy.

NumPy keeps the raw output of PCG64 and SeedSequence stable, but not that of Generator's methods.
"""

import numpy as np


def raw(count, *words):
  """uint64 [count], a pure function of the integers `words`."""
  return np.random.PCG64(np.random.SeedSequence(words)).random_raw(count)


def uniform(count, *words):
  """float64 [count] in [0, 1)."""
  return (raw(count, *words) >> np.uint64(11)) * 2.0**-53
