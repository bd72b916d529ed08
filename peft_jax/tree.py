"""Nested dictionaries by flat paths: {"encoder/blocks_0/attn/q/kernel": array} and back."""

from flax import traverse_util


def flat(tree):
  """{"a/b": leaf} of a nested dict; empty branches vanish."""
  return traverse_util.flatten_dict(tree, sep="/")


def nest(tree):
  """The nested dict of a flat one; the inverse of `flat`."""
  return traverse_util.unflatten_dict(tree, sep="/")


def under(path, tree):
  """{name: leaf} of the leaves directly at `path` in a flat tree (path "" is the root)."""
  start = f"{path}/" if path else ""
  names = (key.removeprefix(start) for key in tree if key.startswith(start))
  return {name: tree[start + name] for name in names if "/" not in name}
