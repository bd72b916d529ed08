"""Allocation: the reference's golden table, the released allocations, and a full sort as oracle."""

import csv
import importlib.util
import math
import pathlib

import jax
import numpy as np
import pytest

from peft_jax.methods import Adapter, LoRA
from peft_jax.selection.allocate import allocate, allocate_at, grid, largest
from peft_jax.tree import flat
from peft_jax.tuned import Tuned

path = pathlib.Path(__file__).parents[1] / "methods" / "layers.py"
spec = importlib.util.spec_from_file_location("layers", path)
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

# --- the golden example ----------------------------------------------------------------------

ROLES = {"norm1": "vector", "q": "matrix", "q.b": "vector", "fc1": "matrix", "fc1.b": "vector"}
LORA = {"lora_q": (8, ("q",)), "lora_fc1": (12, ("fc1",))}
ADAPTER = {"adapter_q": (13, ("q",)), "adapter_fc1": (25, ("fc1",))}
OPTIONS = {"alpha": 2, "beta": 2, "fixed": 4}

# tau, counts, and for LoRA and Adapter: structured, whole, entries, total
GOLDEN = [
  (4, (0, 4, 0, 0, 0), ("q", "", {}, 12), ("", "", {"q": [1, 6, 9, 12]}, 8)),
  (8, (0, 8, 0, 0, 0), ("q", "", {}, 12), ("q", "", {}, 17)),
  (12, (0, 11, 0, 0, 1), ("q", "", {"fc1.b": [1]}, 13), ("q", "", {"fc1.b": [1]}, 18)),
  (16, (0, 12, 0, 3, 1), ("q", "", {"fc1": [0, 11, 22], "fc1.b": [1]}, 16),
   ("q", "", {"fc1": [0, 11, 22], "fc1.b": [1]}, 21)),
  (20, (1, 12, 0, 6, 1), ("q fc1", "", {"norm1": [2], "fc1.b": [1]}, 26),
   ("q", "", {"norm1": [2], "fc1": [0, 8, 11, 19, 22, 30], "fc1.b": [1]}, 25)),
  (24, (1, 12, 1, 8, 2), ("q fc1", "", {"norm1": [2], "q.b": [1], "fc1.b": [1, 6]}, 28),
   ("q", "", {"norm1": [2], "q.b": [1], "fc1": [0, 8, 11, 16, 19, 22, 27, 30], "fc1.b": [1, 6]},
    29)),
  (32, (1, 13, 1, 13, 4), ("q fc1", "fc1.b", {"norm1": [2], "q.b": [1]}, 34),
   ("q fc1", "fc1.b", {"norm1": [2], "q.b": [1]}, 52)),
]


def golden():
  scores = np.array([(37 * k + 11) % 101 + 1 for k in range(64)], np.float32)
  scores[4:20] *= 3
  parts = np.split(scores, [4, 20, 24, 56])
  np.testing.assert_array_equal(parts[1][:4], [177, 288, 96, 207])
  np.testing.assert_array_equal(parts[4], [64, 101, 37, 74, 10, 47, 84, 20])
  shapes = {"norm1": (4,), "q": (4, 4), "q.b": (4,), "fc1": (8, 4), "fc1.b": (8,)}
  return {name: part.reshape(shape)
          for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def entries(allocation):
  assert all(places.dtype == np.int32 for places in allocation.entries.values())
  return {leaf: places.tolist() for leaf, places in allocation.entries.items()}


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_the_golden_table(kind):
  units = LORA if kind == "lora" else ADAPTER
  for tau, counts, *expected in GOLDEN:
    structured, whole, places, total = expected[kind == "adapter"]
    found = allocate_at(golden(), ROLES, units, tau, **OPTIONS)
    assert found.tau == tau and found.total == total
    assert found.counts == dict(zip(ROLES, counts, strict=True))
    assert found.structured == tuple(f"{kind}_{name}" for name in structured.split())
    assert found.whole == tuple(whole.split())
    assert entries(found) == places


@pytest.mark.parametrize("units, totals, kept", [
  (LORA, [12, 12, 13, 16, 26, 28, 29, 34],
   {6: (12, 8), 12: (12, 8), 16: (16, 16), 20: (16, 16), 24: (26, 20), 32: (34, 32)}),
  (ADAPTER, [8, 17, 18, 21, 25, 29, 32, 52],
   {6: (8, 4), 12: (8, 4), 16: (17, 8), 20: (21, 16), 24: (25, 20), 32: (32, 28)}),
], ids=["lora", "adapter"])
def test_the_golden_budgets(units, totals, kept):
  taus = range(4, 33, 4)
  assert [allocate_at(golden(), ROLES, units, tau, **OPTIONS).total for tau in taus] == totals
  found = allocate(golden(), ROLES, units, kept, taus=taus, **OPTIONS)
  assert {budget: (a.total, a.tau) for budget, a in found.items()} == kept
  assert list(found) == list(kept)
  again = allocate(golden(), ROLES, units, kept, taus=list(taus)[::-1], **OPTIONS)
  assert {budget: (a.total, a.tau) for budget, a in again.items()} == kept


def test_the_papers_rule_and_modules_alone():
  options = {**OPTIONS, "alpha": 1}
  found = allocate_at(golden(), ROLES, LORA, 20, **options)
  assert found.structured == ("lora_q",) and found.total == 20
  assert {leaf: len(places) for leaf, places in found.entries.items()} == {
    "norm1": 1, "fc1": 6, "fc1.b": 1}
  found = allocate_at(golden(), ROLES, ADAPTER, 20, **options)
  assert found.structured == () and found.total == 24
  for units, total in ((LORA, 24), (ADAPTER, 17)):
    found = allocate_at(golden(), ROLES, units, 20, unstructured=False, **OPTIONS)
    assert found.total == total and found.entries == {}
    assert found.counts["fc1"] == 6


# --- ViT-B/16: thresholds, and the released allocations --------------------------------------

NAMES = ("q", "k", "v", "proj", "fc1", "fc2")
WIDTHS = {"q": 768, "k": 768, "v": 768, "proj": 768, "fc1": 3072, "fc2": 768}
COSTS = {
  "lora": dict(zip(NAMES, (12_288, 12_288, 12_288, 12_288, 30_720, 30_720), strict=True)),
  "adapter": dict(zip(NAMES, (13_064, 13_064, 13_064, 13_064, 52_232, 13_064), strict=True)),
}
FIRST = {  # the least count that is replaced by a module
  "lora": dict(zip(NAMES, (1229, 1229, 1229, 1229, 3072, 3072), strict=True)),
  "adapter": dict(zip(NAMES, (1307, 1307, 1307, 1307, 5224, 1307), strict=True)),
}
WHOLE = {768: 154, 3072: 615}
ROWS = list(csv.DictReader((pathlib.Path(__file__).parent / "spt_official.csv").open()))


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_the_costs_are_those_of_our_modules(kind):
  model, params, table = layers.by_shapes("vit_base_patch16_224")
  for name in NAMES:
    path = f"encoder/blocks_3/{'attn' if name in NAMES[:4] else 'mlp'}/{name}"
    method = LoRA(rank=8, sites=(path,)) if kind == "lora" else Adapter(width=8, sites=(path,))
    made = jax.eval_shape(Tuned(model, (method,), table).init, jax.random.key(0), params)
    assert sum(leaf.size for leaf in flat(made).values()) == COSTS[kind][name]


def parts_of_a_vit():
  """(leaves' sizes, roles) with the vectors of ViT-B/16, and as much of its kernels as matters."""
  sizes = {}
  for i in range(12):
    for name in ("attn/norm/scale", "attn/norm/bias", "mlp/norm/scale", "mlp/norm/bias"):
      sizes[f"{i}/{name}"] = 768
    for name, width in WIDTHS.items():
      sizes[f"{i}/{name}/kernel"], sizes[f"{i}/{name}/bias"] = 6000, width
  sizes |= {"norm/scale": 768, "norm/bias": 768}
  return sizes, {leaf: "matrix" if leaf.endswith("kernel") else "vector" for leaf in sizes}


def units_of(kind):
  return {f"{i}/{name}": (COSTS[kind][name], (f"{i}/{name}/kernel",))
          for i in range(12) for name in NAMES}


def planted(counts, sizes):
  """Scores of which exactly counts[leaf] in each leaf are among the largest, anywhere in it."""
  rng = np.random.default_rng(0)
  scores = {}
  for leaf, size in sizes.items():
    scores[leaf] = rng.uniform(0, 1, size).astype(np.float32)
    scores[leaf][rng.permutation(size)[: counts.get(leaf, 0)]] += 2
  return scores


@pytest.mark.parametrize("kind", ["lora", "adapter"])
@pytest.mark.parametrize("below", [0, 1])
def test_the_thresholds(kind, below):
  sizes, roles = parts_of_a_vit()
  counts = {f"{i}/{name}/kernel": FIRST[kind][name] - below for i in range(12) for name in NAMES}
  counts |= {leaf: WHOLE[size] - below for leaf, size in sizes.items() if leaf not in counts}
  found = allocate_at(planted(counts, sizes), roles, units_of(kind), sum(counts.values()))
  assert found.counts == counts
  if below:
    assert found.structured == found.whole == () and found.total == sum(counts.values())
  else:
    assert len(found.structured) == 72 and len(found.whole) == 122 and found.entries == {}
    assert found.total == {"lora": 1_449_216, "adapter": 1_532_736}[kind] - 768


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['kind']}-{row['task']}")
def test_the_released_allocations(row):
  """Their parts add up as ours do: planted counts of their structure give their totals."""
  number = {field: int(value) for field, value in row.items() if field not in ("kind", "task")}
  costs, first = COSTS[row["kind"]], FIRST[row["kind"]]
  assert sum(number[name] for name in NAMES) == sum(number[f"block{i}"] for i in range(1, 13))
  modules = sum(costs[name] * number[name] for name in NAMES)
  wide, rest = divmod(number["structured"] - modules - 768 * number["whole"], 3072 - 768)
  narrow = number["whole"] - wide
  assert rest == 0 and 0 <= wide <= 12 and 0 <= narrow <= 110
  assert number["structured"] == modules + 768 * narrow + 3072 * wide
  assert number["total"] == number["structured"] + number["unstructured"] + 768

  sizes, roles = parts_of_a_vit()
  counts = {f"{i}/{name}/kernel": first[name] for name in NAMES for i in range(number[name])}
  for size, n in ((768, narrow), (3072, wide)):
    vectors = [leaf for leaf in sizes if roles[leaf] == "vector" and sizes[leaf] == size]
    counts |= {leaf: WHOLE[size] for leaf in vectors[:n]}
  left = number["unstructured"]
  for leaf in sizes:
    if roles[leaf] == "matrix" and leaf not in counts:
      counts[leaf] = min(left, first[leaf.split("/")[1]] - 1)
      left -= counts[leaf]
  assert left == 0
  tau = sum(counts.values())
  found = allocate(planted(counts, sizes), roles, units_of(row["kind"]), (400_000,), taus=(tau,),
                   fixed=768)[400_000]
  assert found.total == number["total"]
  assert len(found.structured) == sum(number[name] for name in NAMES)
  assert len(found.whole) == number["whole"]
  assert sum(places.size for places in found.entries.values()) == number["unstructured"]


# --- against a full sort ---------------------------------------------------------------------


def naive(scores, roles, units, taus, alpha, beta, fixed, unstructured):
  """{tau: (total, structured, whole, entries, counts)}, each from a sort of its own."""
  every = np.concatenate([np.ravel(leaf) for leaf in scores.values()]).astype(float)
  owner = [(leaf, place) for leaf in scores for place in range(np.size(scores[leaf]))]
  found = {}
  for tau in taus:
    order = sorted(range(len(every)), key=lambda i: (-every[i], i))[:tau]
    places = {leaf: sorted(owner[i][1] for i in order if owner[i][0] == leaf) for leaf in scores}
    total, structured, whole, entries, gone = fixed, [], [], {}, set()
    for name, (cost, leaves) in units.items():
      if alpha > 0 and sum(len(places[leaf]) for leaf in leaves) * alpha >= cost:
        structured.append(name)
        gone |= set(leaves)
        total += cost
    for leaf in scores:
      if roles[leaf] == "vector" and beta > 0 and len(places[leaf]) * beta >= scores[leaf].size:
        whole.append(leaf)
        total += scores[leaf].size
      elif unstructured and leaf not in gone and places[leaf]:
        entries[leaf] = places[leaf]
        total += len(places[leaf])
    counts = {leaf: len(there) for leaf, there in places.items()}
    found[tau] = total, tuple(structured), tuple(whole), entries, counts
  return found


@pytest.mark.parametrize("seed", range(40))
def test_against_a_full_sort_for_every_tau(seed):
  rng = np.random.default_rng(seed)
  shapes = [tuple(rng.integers(1, 6, rng.integers(1, 4))) for _ in range(rng.integers(2, 8))]
  scores = {f"leaf{i}": rng.exponential(size=shape).astype(np.float32)
            for i, shape in enumerate(shapes)}
  if seed % 3:  # ties, in 8 levels or 3
    scores = {leaf: np.floor(x * (3, 1)[seed % 2]) for leaf, x in scores.items()}
  roles = {leaf: ("matrix", "vector", "entries", "matrix")[rng.integers(4)] for leaf in scores}
  matrices = [leaf for leaf in scores if roles[leaf] == "matrix"]
  rng.shuffle(matrices)
  parts = np.split(matrices, sorted(rng.integers(0, len(matrices) + 1, 3)))
  units = {f"unit{i}": (int(rng.integers(1, 40)), tuple(map(str, part)))
           for i, part in enumerate(parts[:-1]) if len(part)}  # those of the last are in no unit
  every = sum(x.size for x in scores.values())
  taus = sorted({int(tau) for tau in rng.integers(0, every + 1, 9)} | {every})
  alpha, beta = float(rng.choice([0, 1e-9, 1, 2, 8])), float(rng.choice([0, 1, 4]))
  fixed, unstructured = int(rng.integers(0, 5)), bool(seed % 5)
  oracle = naive(scores, roles, units, taus, alpha, beta, fixed, unstructured)
  options = {"alpha": alpha, "beta": beta, "fixed": fixed, "unstructured": unstructured}
  plain = lambda a: (a.total, a.structured, a.whole, entries(a), a.counts)  # noqa: E731
  for tau in taus:
    assert plain(allocate_at(scores, roles, units, tau, **options)) == oracle[tau]
  for budget in (1, 10, every // 2, every, 10 * every):
    kept, nearest = None, 0
    for tau in taus:
      if abs(oracle[tau][0] - budget) <= abs(nearest - budget):
        kept, nearest = tau, oracle[tau][0]
    if kept is None:
      least = min(o[0] for o in oracle.values())
      with pytest.raises(ValueError, match=f"near a budget of {budget:,}.*nearest has {least:,}"):
        allocate(scores, roles, units, (budget,), taus=taus, **options)
    else:
      found = allocate(scores, roles, units, (budget,), taus=taus, **options)[budget]
      assert found.tau == kept and plain(found) == oracle[kept]
  nothing = allocate(scores, roles, units, (0,), taus=taus, **options)[0]
  assert nothing.tau == 0 and nothing.total == fixed
  assert nothing.structured == nothing.whole == () and nothing.entries == {}
  assert set(nothing.counts.values()) == {0}


def test_a_unit_of_several_matrices_counts_their_entries_together():
  scores = {leaf: np.arange(4, dtype=np.float32) + 4 * i for i, leaf in enumerate("qkv")}
  roles = dict.fromkeys(scores, "matrix")
  options = {"alpha": 1, "beta": 0}
  found = allocate_at(scores, roles, {"block": (6, ("q", "k", "v"))}, 6, **options)
  assert found.structured == ("block",) and found.entries == {} and found.total == 6
  found = allocate_at(scores, roles, {"block": (6, ("k", "v"))}, 5, **options)
  assert found.structured == () and entries(found) == {"k": [3], "v": [0, 1, 2, 3]}


def test_scores_that_are_no_numbers_are_refused():
  scores = {"a": np.array([1, np.nan, np.nan], np.float32)}
  with pytest.raises(ValueError, match="^2 of 3 scores are not numbers"):
    allocate_at(scores, {"a": "vector"}, {}, 1)


@pytest.mark.parametrize("taus", [(), (-1, 4)])
def test_taus_that_are_no_numbers_of_scores_are_refused(taus):
  with pytest.raises(ValueError, match="must be numbers of scores, each 0 or more"):
    allocate(golden(), ROLES, LORA, (6,), taus=taus)


@pytest.mark.parametrize("n", [0, 1, 30, 99, 100, 101])
def test_the_largest_are_ranked_with_ties_by_place(n):
  for levels in (1, 2, 9, 10**6):
    values = np.random.default_rng(n).integers(0, levels, 100).astype(np.float32)
    np.testing.assert_array_equal(largest(values, n), np.argsort(-values, kind="stable")[:n])


def test_the_grid():
  released = grid(85_056_000)
  assert released == tuple(range(20_000, 1_580_001, 20_000)) and len(released) == 79
  assert grid(170_112_000) == tuple(range(40_000, 3_160_001, 40_000))
  for candidates in (1, 40, 79, 1000, 5000, 27_514_458):
    taus = grid(candidates)
    assert taus[0] >= 1 and taus[-1] <= candidates and (np.diff((0, *taus)) >= 1).all()
    assert len(taus) == min(79, candidates)
    share = max(1.0, candidates * 20_000 / 85_056_000)
    assert all(math.isclose(tau, min(share * i, candidates), abs_tol=1)
               for i, tau in enumerate(taus, 1))
