"""SPT's allocation: which kernels get a module, which vectors are whole, which entries are trained.

    top = the tau largest scores of all leaves;  c = how many of them lie in a leaf or unit
    unit (kernels that a module stands for):  c >= cost / alpha  a module, its `cost` parameters
    vector:                                   c >= size / beta   the whole vector
    else                                                         the c entries themselves
    total = costs + sizes of whole vectors + entries + fixed

and of many tau the one whose total is nearest to a budget.

He et al. 2023, "Sensitivity-aware visual parameter-efficient fine-tuning", ICCV, arXiv:2303.08566,
section 3.2, with the thresholds, the vectors and the sweep of its released code. The paper's own
rule, that a module costs no more than the entries it replaces, is alpha = 1. The total is near a
budget, not below it: with alpha = 10 a module may cost ten times what it replaces.
"""

import dataclasses

import numpy as np

from peft_jax.selection.top import largest

STEP, STEPS, OF = 20_000, 79, 85_056_000  # of the code's grid, for ViT-B/16's candidates


@dataclasses.dataclass(frozen=True, eq=False)
class Allocation:
  """What is trained.

  tau: how many of the largest scores it was made from.
  total: parameters trained, the `fixed` ones among them; without the head.
  structured: names of the units that are given a module.
  whole: leaf paths of the vectors that are trained whole.
  entries: {leaf path: int32 flat places, rising} of all others with a score among the largest.
  counts: {leaf path: how many of the tau largest lie there}, of every leaf.
  """

  tau: int
  total: int
  structured: tuple[str, ...]
  whole: tuple[str, ...]
  entries: dict[str, np.ndarray]
  counts: dict[str, int]


def grid(candidates):
  """The tau that are tried: 20,000, 40,000, ..., 1,580,000 for the 85,056,000 of ViT-B/16.

  In proportion for other numbers of candidates, at least 1 apart and not above all of them. The
  code's floats make four of its 79 one larger.
  """
  steps = (max(i, STEP * i * candidates // OF) for i in range(1, STEPS + 1))
  return tuple(sorted({min(tau, candidates) for tau in steps}))


def allocate(scores, roles, units, budgets, *, taus, alpha=10.0, beta=5.0, fixed=0,
             unstructured=True):
  """{budget: Allocation}: of each the one whose total is nearest; of equal ones the largest tau.

  scores: {leaf path: float32 array}. Ties between scores fall to the first leaf, in a leaf to the
    lowest flat place.
  roles: {leaf path: "matrix", "vector" or "entries"}, of every leaf of `scores`.
  units: {name: (cost, leaf paths)}, the matrices that one module stands for, and its parameters. A
    matrix in no unit is never replaced.
  budgets: numbers of parameters, `fixed` among them and the head not; 0 is nothing but `fixed`.
  taus: the numbers of largest scores that are tried, in any order; see `grid`.
  alpha: how many times its entries a module may cost; 0 gives modules to none.
  beta: a vector is whole with a 1/beta of its scores among the largest; 0 takes none whole.
  fixed: parameters that are trained in any case.
  unstructured: False trains no single entries: modules and whole vectors alone.
  Raises ValueError for scores that are not numbers, and for a budget that no tau comes near: every
  total is above twice the budget.
  """
  taus = sorted(set(taus))
  sweep = _Sweep(scores, roles, units, taus, alpha, beta, fixed, unstructured)
  totals = [sweep.at(tau)[0] for tau in taus]
  found = {}
  for budget in budgets:
    kept, nearest = None, 0  # as in the code: what has chosen nothing yet has a total of 0
    for tau, total in zip(taus, totals, strict=True):
      if abs(total - budget) <= abs(nearest - budget):
        kept, nearest = tau, total
    if budget and kept is None:
      raise ValueError(f"SPT: no allocation comes near a budget of {budget:,} parameters; the "
                       f"nearest has {min(totals):,}. Take a budget of that, or cheaper modules.")
    found[budget] = sweep.allocation(kept if budget else 0)
  return found


def allocate_at(scores, roles, units, tau, *, alpha=10.0, beta=5.0, fixed=0, unstructured=True):
  """The Allocation made from the `tau` largest scores; the rest as in `allocate`."""
  return _Sweep(scores, roles, units, (tau,), alpha, beta, fixed, unstructured).allocation(tau)


class _Sweep:
  """Allocations from one ranking of the largest scores."""

  def __init__(self, scores, roles, units, taus, alpha, beta, fixed, unstructured):
    if not taus or min(taus) < 0:
      raise ValueError(f"SPT: tau={tuple(taus)} must be numbers of scores, each 0 or more.")
    self.leaves, self.units = tuple(scores), units
    self.alpha, self.beta, self.fixed, self.unstructured = alpha, beta, fixed, unstructured
    sizes = [np.size(scores[leaf]) for leaf in self.leaves]
    self.starts = np.cumsum([0, *sizes])
    self.vectors = {leaf: size for leaf, size in zip(self.leaves, sizes, strict=True)
                    if roles[leaf] == "vector"}
    inside = [leaf for _, leaves in units.values() for leaf in leaves]
    assert len(set(inside)) == len(inside), "a leaf in two units"
    assert all(roles[leaf] == "matrix" for leaf in inside), "a unit of other leaves than matrices"
    every = np.concatenate([np.asarray(scores[leaf], np.float32).ravel() for leaf in self.leaves])
    self.ranked = largest(every, max(taus))
    leaf_of = np.searchsorted(self.starts, self.ranked, "right") - 1
    self.counted, before, counts = {}, 0, np.zeros(len(self.leaves), np.int64)
    for tau in sorted({0, *taus}):
      counts = counts + np.bincount(leaf_of[before:tau], minlength=len(self.leaves))
      self.counted[tau], before = dict(zip(self.leaves, counts.tolist(), strict=True)), tau

  def at(self, tau):
    """(total, structured, whole, leaves of which entries are trained) of one tau."""
    counts, alpha, beta = self.counted[tau], self.alpha, self.beta
    structured = tuple(
      name for name, (cost, leaves) in self.units.items()
      if alpha and sum(counts[leaf] for leaf in leaves) >= cost / alpha
    )
    whole = tuple(leaf for leaf, size in self.vectors.items()
                  if beta and counts[leaf] >= size / beta)
    replaced = {leaf for name in structured for leaf in self.units[name][1]} | set(whole)
    single = [leaf for leaf in self.leaves
              if self.unstructured and counts[leaf] and leaf not in replaced]
    total = self.fixed + sum(self.units[name][0] for name in structured)
    total += sum(self.vectors[leaf] for leaf in whole) + sum(counts[leaf] for leaf in single)
    return total, structured, whole, single

  def allocation(self, tau):
    total, structured, whole, single = self.at(tau)
    chosen = np.sort(self.ranked[:tau])
    ends = np.searchsorted(chosen, self.starts)
    places = {leaf: (chosen[first:last] - start).astype(np.int32) for leaf, start, first, last
              in zip(self.leaves, self.starts[:-1], ends[:-1], ends[1:], strict=True)}
    entries = {leaf: places[leaf] for leaf in single}
    return Allocation(tau, total, structured, whole, entries, self.counted[tau])
