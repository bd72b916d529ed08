"""How far a task's images are from others, as a frozen backbone sees them.

    linear   || mean_i a_i - mean_j b_j ||
    rbf      mean_{i != i'} k(a_i, a_i') + mean_{j != j'} k(b_j, b_j') - 2 mean_ij k(a_i, b_j)
             k(x, y) = exp(-|x - y|^2 / (2 s^2)),  s: the median distance of two of all points

Maximum mean discrepancy, Gretton et al. 2012 (JMLR 13), section 2.2 and the unbiased estimate of
lemma 6, which may be below 0. He et al. 2023, arXiv:2303.08566, figure 3c, set the gap between
a task and ImageNet beside what unstructured tuning adds to structured tuning; they do not say which
layer, sample or kernel: here it is what the head reads, and the linear one by default.
"""

import collections
import json
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from peft_jax import data
from peft_jax.report.table import Table


def linear(a, b):
  """The distance of the means of a [N, D] and b [M, D], a float of 0 or more."""
  a, b = _float64(a, b)
  return float(np.linalg.norm(a.mean(0) - b.mean(0)))


def rbf(a, b, bandwidth=None):
  """The squared discrepancy of a [N, D] and b [M, D] under a Gaussian kernel, N and M above 1.

  bandwidth: s; None takes the median distance. Raises ValueError where all points are the same.
  """
  a, b = _float64(a, b)
  n = len(a)
  if min(n, len(b)) < 2:
    raise ValueError(f"The rbf kernel compares 2 images or more of each, not {n} and {len(b)}.")
  square = _square_distances(np.concatenate([a, b]))
  if bandwidth is None:
    bandwidth = float(np.median(np.sqrt(square[np.triu_indices(len(square), 1)])))
    if not bandwidth > 0:
      raise ValueError("Half of all pairs of images have the same features: the rbf kernel has no "
                       "median distance to take as bandwidth; take --kernel=linear.")
  k = np.exp(-square / (2 * bandwidth**2))
  own = [(part.sum() - np.trace(part)) / (len(part) * (len(part) - 1))
         for part in (k[:n, :n], k[n:, n:])]
  return float(sum(own) - 2 * k[:n, n:].mean())


KERNELS = {"linear": linear, "rbf": rbf}
WORDS = {
  "linear": "the distance of the mean features",
  "rbf": "the squared discrepancy under a Gaussian kernel",
}


def _float64(a, b):
  return np.asarray(a, np.float64), np.asarray(b, np.float64)


def _square_distances(x):
  lengths = np.sum(x**2, axis=1)
  found = lengths[:, None] + lengths[None] - 2 * x @ x.T
  np.fill_diagonal(found, 0)
  return np.maximum(found, 0)


def sample(split, most):
  """At most `most` indices of a split, evenly spread over it."""
  return np.unique(np.linspace(0, len(split) - 1, min(most, len(split))).round().astype(int))


def features(model, params, split, indices, normalize, batch_size=32, show=None):
  """float32 [n, D]: what the head reads of the images of `split` at `indices`.

  model, params: a backbone of peft_jax.models; a head is not used. show: called with the number of
  batches done.
  """
  model = model.clone(num_classes=0, head_layers=1)
  apply = jax.jit(lambda params, images: model.apply(
    {"params": params}, data.normalize(images, normalize)))
  batch_size, found = min(batch_size, len(indices)), []
  for start in range(0, len(indices), batch_size):
    images = split.images(indices[start : start + batch_size])
    padding = [(0, batch_size - len(images)), (0, 0), (0, 0), (0, 0)]
    found.append(np.asarray(apply(params, np.pad(images, padding)), np.float32)[: len(images)])
    if show:
      show(len(found))
  return np.concatenate(found)


class Pair(NamedTuple):
  """Two finished runs on one task.

  accuracies: of the two after the last epoch, in percent.
  """

  task: str
  model: str
  accuracies: tuple[float, float]


def pair(a, b):
  """The Pair of two result.json files; ValueError where they are not of one task and model."""
  first, second = _result(a), _result(b)
  for key in ("task", "model", "eval_split"):
    if first[key] != second[key]:
      raise ValueError(f"{a} has {key}={first[key]!r}, {b} has {second[key]!r}: a pair is of two "
                       "methods on the same.")
  accuracies = tuple(100 * r[f"{r['eval_split']}_accuracy"] for r in (first, second))
  return Pair(first["task"], first["model"], accuracies)


def _result(path):
  """What is in a result.json; ValueError or FileNotFoundError in one sentence."""
  try:
    found = json.loads(epath.Path(path).read_text())
    keys = ("task", "model", "eval_split", f"{found['eval_split']}_accuracy")
    if all(isinstance(found[key], str) for key in keys[:3]) and 0 <= found[keys[3]] <= 1:
      return found
  except FileNotFoundError:
    raise FileNotFoundError(f"There is no {path}; a finished run has a result.json.") from None
  except (ValueError, KeyError, TypeError):
    pass
  raise ValueError(f"{path} is no result.json of a finished run.")


def table(gaps, kernel, source, pairs=()):
  """The gap of each task, and beside it what the first run of each pair is ahead of the second.

  gaps: {(task, group): gap}, the gap's own order. pairs: of these tasks, one or more for each.
  """
  title = f"Gap to {source}, {WORDS[kernel]}"
  if not pairs:
    rows = tuple((*task, gap) for task, gap in gaps.items())
    return Table("domain", title, ("task", "group", "gap"), rows)
  rows = tuple(
    (*task, gap, *pair.accuracies, pair.accuracies[0] - pair.accuracies[1])
    for task, gap in gaps.items() for pair in pairs if pair.task == task[0]
  )
  return Table("domain", title, ("task", "group", "gap", "A %", "B %", "A - B"), rows)


def by_group(domain):
  """The means of a `table` over the tasks of each group, as the figure of the paper has them."""
  groups = collections.defaultdict(list)
  for row in domain.rows:
    groups[row[1]].append(row[2:])
  rows = tuple((group, len(found), *map(float, np.mean(found, axis=0)))
               for group, found in groups.items())
  columns = ("group", "rows", *domain.columns[2:])
  return Table("domain_groups", f"{domain.title}: means", columns, rows)
