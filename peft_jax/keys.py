"""Random keys. Every draw comes from one made of (seed, purpose, step); none is ever stored."""

import zlib

import jax


def fold(key, word):
  """The key of `word`, such as a purpose, a collection or a path, below `key`."""
  return jax.random.fold_in(key, zlib.crc32(word.encode()))


def key(seed, purpose, step=0):
  """The key of one purpose ("weights", "augment", "dropout", ...) at one step."""
  return jax.random.fold_in(fold(jax.random.key(seed), purpose), step)
