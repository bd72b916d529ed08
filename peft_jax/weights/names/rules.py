"""Renaming by tables of regular expressions."""

import re


def renamed(name, rules):
  """`name` after the first of `rules`, pairs (pattern, replacement), that fits all of it."""
  for pattern, new in rules:
    if re.fullmatch(pattern, name):
      return re.sub(pattern, new, name)
  return name


def same_heads(found, wanted):
  """Raises ValueError unless both numbers agree; another one would load silently and be wrong."""
  if wanted is not None and found != wanted:
    raise ValueError(f"the file has {found} attention heads, the model {wanted}.")


def put(out, name, array):
  """out[name] = array; ValueError where two of a file's tensors come to the same name."""
  if name in out:
    raise ValueError(f"two of its tensors are {name}.")
  out[name] = array
