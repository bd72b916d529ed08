"""How many numbers are trained, as the papers count them."""

import collections

from peft_jax.tree import flat


def count(tuned):
  """{"trained", one entry for each optimizer group, "backbone_without_head", "percent"}.

  trained: all trained numbers, the head's among them; percent = 100 trained /
  backbone_without_head. The papers differ in where they count the head: compare absolute numbers.
  """
  labels, sizes = flat(tuned.labels(tuned.shapes)), collections.Counter()
  for path, leaf in flat(tuned.shapes).items():
    sizes[labels[path]] += leaf.size
  sizes.pop("freeze", None)
  total = sum(leaf.size for leaf in flat(tuned.shapes["params"]).values())
  trained, backbone = sum(sizes.values()), total - sizes["head"]
  return {
    "trained": trained,
    **dict(sorted(sizes.items())),
    "backbone_without_head": backbone,
    "percent": 100 * trained / backbone,
  }
