"""How many numbers are trained, as the papers count them.

The same run has different percentages by what is counted above and below, see `percentages`: the
absolute counts of `count` are what can be compared.
"""

import collections
import math

from peft_jax import partition
from peft_jax.tree import flat


def count(tuned):
  """{"trained", one entry for each optimizer group, "backbone_without_head", "percent"}.

  trained: all trained numbers, the head's among them; percent = 100 trained /
  backbone_without_head.
  """
  labels, sizes = flat(tuned.labels(tuned.shapes)), collections.Counter()
  partly = partition.partly(tuned, tuned.shapes)
  for path, leaf in flat(tuned.shapes).items():
    sizes[labels[path]] += partly.get(path, leaf).size
  sizes.pop("freeze", None)
  total = sum(leaf.size for leaf in flat(tuned.shapes["params"]).values())
  trained, backbone = sum(sizes.values()), total - sizes["head"]
  return {
    "trained": trained,
    **dict(sorted(sizes.items())),
    "backbone_without_head": backbone,
    "percent": 100 * trained / backbone,
  }


def percentages(counts):
  """The percentages that papers print, of the result of `count`.

  without_head: head neither above nor below (SSF, SPT's LoRA-16, V-PETL Bench).
  with_head: head above, backbone without head below (this project, SAN, SPT's Adapter rows).
  of_model: head above; backbone, head and added variables below (VPT's code, GPS's scripts).
  """
  trained, head = counts["trained"], counts.get("head", 0)
  backbone = counts["backbone_without_head"]
  added = trained - head - counts.get("backbone", 0)
  return {
    "without_head": 100 * (trained - head) / backbone,
    "with_head": 100 * trained / backbone,
    "of_model": 100 * trained / (backbone + head + added),
  }


def total_ratio(counts):
  """"Total params" of VPT and SPT: what must be stored for several tasks, in backbones.

  counts: the result of `count` for each task. (one shared backbone + what every task trains) /
  backbone; where everything is trained, nothing is shared and the first term is 0. Over VTAB-1k
  and FGVC, 24 tasks: 24.02 for full tuning, 1.02 for linear probing, 1.18 for VPT-deep.
  """
  counts = list(counts)
  backbone = counts[0]["backbone_without_head"]
  shared = 0 if all(c.get("backbone", 0) == backbone for c in counts) else backbone
  return (shared + sum(c["trained"] for c in counts)) / backbone


def ppt(score, counts, scale=1e7):
  """Performance-efficiency trade-off of V-PETL Bench: score * exp(-log10(P / scale + 1)).

  score: in [0, 1]; counts: the result of `count`, P = its trained numbers without the head. 0.8802
  with 100,000 of them gives 0.876.
  """
  if not 0 <= score <= 1:
    raise ValueError(f"ppt: score={score}; it is a fraction, between 0 and 1.")
  own = counts["trained"] - counts.get("head", 0)
  return score * math.exp(-math.log10(own / scale + 1))
