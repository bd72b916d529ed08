"""Two layouts of the same blocks: one subtree per block, or one subtree stacked on axis 0.

    encoder/blocks_0/attn/q/kernel [D, D], encoder/blocks_1/...     loop "python" and "remat"
    encoder/blocks/attn/q/kernel [depth, D, D]                      loop "scan" and "scan_remat"

Both functions take any nested dict: parameters, a method's variables, gradients, moments.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

NUMBERED = re.compile(r"blocks_(\d+)")


def stack_blocks(tree):
  """`tree` with the siblings blocks_0, blocks_1, ... replaced by one stacked `blocks`.

  Raises ValueError where the blocks are not numbered from 0 without a gap or are not alike, as
  when a method acts at some blocks only: a scan cannot hold such a tree.
  """
  if not isinstance(tree, dict):
    return tree
  found = {int(m[1]): k for k in tree if isinstance(k, str) and (m := NUMBERED.fullmatch(k))}
  rest = {k: stack_blocks(v) for k, v in tree.items() if k not in found.values()}
  if not found:
    return rest
  if sorted(found) != list(range(len(found))):
    raise ValueError(f"blocks {sorted(found)} cannot be stacked: they must count from 0 without a "
                     "gap; a scanned model holds the same variables in every block.")
  blocks = [tree[found[i]] for i in range(len(found))]
  first = shapes(blocks[0])
  for i, block in enumerate(blocks[1:], 1):
    if shapes(block) != first:
      odd = sorted(set(shapes(block).items()) ^ set(first.items()))[0]
      raise ValueError(f"blocks_0 and blocks_{i} cannot be stacked: they differ in {odd[0]} "
                       f"{odd[1]}; a scanned model holds the same variables in every block.")
  return {**rest, "blocks": jax.tree.map(lambda *a: stack(a), *blocks)}


def unstack_blocks(tree):
  """`tree` with every stacked `blocks` replaced by its siblings blocks_0, blocks_1, ..."""
  if not isinstance(tree, dict):
    return tree
  rest = {k: unstack_blocks(v) for k, v in tree.items() if k != "blocks"}
  if "blocks" not in tree:
    return rest
  depths = {v.shape[0] if v.ndim else None for v in jax.tree.leaves(tree["blocks"])}
  if len(depths) != 1 or None in depths:
    raise ValueError("blocks cannot be unstacked: the first axis of every leaf should be the "
                     f"number of blocks, and these are {sorted(depths, key=str)}.")
  for i in range(depths.pop()):
    rest[f"blocks_{i}"] = jax.tree.map(lambda v, i=i: v[i], tree["blocks"])
  return rest


def shapes(tree):
  """{path: (shape, dtype)} of a nested dict, paths joined by "/"."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {"/".join(str(k.key) for k in path): f"{v.dtype}{list(v.shape)}" for path, v in leaves}


def stack(arrays):
  return (np if all(isinstance(a, np.ndarray) for a in arrays) else jnp).stack(arrays)
