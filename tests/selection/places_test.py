"""Every level of choosing against NumPy, and what a method's fields make of scores."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models, safetensors
from peft_jax.methods import GPS
from peft_jax.methods.gps import LEVELS
from peft_jax.models import stack_blocks
from peft_jax.selection import places as selected
from peft_jax.sites import sites
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned

SHAPES = {"stem": (3, 7), "b/q": (5, 4), "b/k": (5, 4), "b/v": (5, 2), "fc": (2, 9)}


def drawn(seed, ties=False):
  rng = np.random.default_rng(seed)
  scores = {path: rng.standard_normal(shape).astype(np.float32) for path, shape in SHAPES.items()}
  if ties:
    scores = {path: np.round(leaf) for path, leaf in scores.items()}
  scores["fc"][:, 3] = 0
  return scores


def stable(values, n):
  """The n largest, the first of equals first."""
  return sorted(range(len(values)), key=lambda i: (-values[i], i))[:n]


def oracle(level, scores, k):
  """{path: set of (input, neuron)} in plain loops."""
  scores = {path: np.abs(leaf) for path, leaf in scores.items()}
  cells = {path: list(itertools.product(*map(range, leaf.shape))) for path, leaf in scores.items()}
  budget = lambda paths: sum(min(k, SHAPES[p][0]) * SHAPES[p][1] for p in paths)  # noqa: E731
  own = {path: [stable(column, k) for column in leaf.T] for path, leaf in scores.items()}
  if level == "neuron":
    return {p: {(i, j) for j, inputs in enumerate(own[p]) for i in inputs} for p in scores}
  if level == "shared":
    found = {}
    for path, (fan_in, fan_out) in SHAPES.items():
      named = [sum(i in inputs for inputs in own[path]) for i in range(fan_in)]
      found[path] = set(itertools.product(stable(named, k), range(fan_out)))
    return found
  if level in ("layer", "net"):
    groups = [["stem"], ["b/q", "b/k", "b/v"], ["fc"]] if level == "layer" else [list(scores)]
    found = {}
    for group in groups:
      every = [(path, cell) for path in group for cell in cells[path]]
      for i in stable([scores[path][cell] for path, cell in every], budget(group)):
        found.setdefault(every[i][0], set()).add(every[i][1])
    return found
  if level == "channel":
    units = [(p, [c for c in cells[p] if c[1] == j]) for p in scores for j in range(SHAPES[p][1])]
  else:
    units = [(path, cells[path]) for path in scores]
  means = [np.mean([scores[p][c] for c in cs], dtype=np.float64) for p, cs in units]
  found, left = {}, budget(scores)
  for path, cells in (units[i] for i in stable(means, len(units))):
    if (left := left - len(cells)) < 0:
      break
    found.setdefault(path, set()).update(cells)
  return found


def chosen(level, scores, k):
  """{path: set of (input, neuron)} of the code under test, each entry once."""
  found = selected.by_level(level, {p: jnp.asarray(m) for p, m in scores.items()}, k)
  cells = {}
  for path, rows in found.items():
    rows, (fan_in, fan_out) = np.asarray(rows), SHAPES[path]
    assert rows.dtype == np.int32 and rows.ndim == 2
    if level in ("neuron", "shared"):
      assert rows.shape == (min(k, fan_in), fan_out)
      np.testing.assert_array_equal(rows % fan_out, np.arange(fan_out)[None].repeat(len(rows), 0))
    cells[path] = {(place // fan_out, place % fan_out) for place in rows.ravel().tolist()}
    assert len(cells[path]) == rows.size and rows.size
  return cells


@pytest.mark.parametrize("k", [1, 2, 5, 9])
@pytest.mark.parametrize("level", LEVELS)
def test_levels_against_plain_loops(level, k):
  for seed in range(4):
    scores = drawn(seed, ties=seed % 2 == 1)
    expected = oracle(level, scores, k)
    if not expected:
      with pytest.raises(ValueError, match=f"^GPS: k={k} is a budget of"):
        chosen(level, scores, k)
      continue
    assert chosen(level, scores, k) == expected
    scaled = {path: np.float32(-4) * leaf for path, leaf in scores.items()}
    assert chosen(level, scaled, k) == expected


def test_net_layer_and_neuron_have_as_many_entries_and_whole_units_no_more():
  count = lambda cells: sum(map(len, cells.values()))  # noqa: E731
  for k in (1, 3, 5):
    counts = {level: count(chosen(level, drawn(0), k)) for level in LEVELS[:-2]}
    assert set(counts.values()) == {sum(min(k, a) * b for a, b in SHAPES.values())}
    whole = count(chosen("channel", drawn(0), k))
    assert counts["net"] - 5 < whole <= counts["net"]
  everything = {path: a * b for path, (a, b) in SHAPES.items()}
  for level in LEVELS:
    assert {path: len(cells) for path, cells in chosen(level, drawn(0), 5).items()} == everything


@pytest.mark.parametrize("level", ["channel", "matrix"])
def test_a_budget_for_no_unit_says_which_k_is_enough(level):
  wide = {"stem": np.ones((30, 2), np.float32), "fc": np.zeros((2, 3), np.float32)}
  matrices = {path: jnp.asarray(leaf) for path, leaf in wide.items()}
  with pytest.raises(ValueError, match=f"^GPS: k=1 .* level='{level}' needs k=") as error:
    selected.by_level(level, matrices, 1)
  least = int(re.search(r"needs k=(\d+)", str(error.value))[1])
  assert selected.by_level(level, matrices, least)
  with pytest.raises(ValueError, match=f"needs k={least} or more"):
    selected.by_level(level, matrices, least - 1)


# --- on a model -------------------------------------------------------------------------------


def tiny(**options):
  model = models.ViT(4, width=8, depth=3, heads=2, patch=4, image_size=8, **options)
  x = jnp.zeros((1, 8, 8, 3))
  return model, jax.jit(model.init)(jax.random.key(0), x)["params"], sites(model, x)


class Config:
  seed = 0


def choose(method, model, params, table, **more):
  return selected.choose(method, model, params, table, Config, **more)


def test_given_scores_decide(tmp_path):
  model, params, table = tiny()
  own = {path: leaf for path, leaf in flat(params).items() if path.endswith("kernel")}
  rng = np.random.default_rng(0)
  scores = {path: rng.standard_normal(leaf.shape).astype(np.float32) for path, leaf in own.items()}
  file = tmp_path / "scores.safetensors"
  safetensors.write(file, scores)
  method = GPS(k=2, score="file", scores=str(file))
  found = choose(method, model, params, table)
  given = choose(GPS(k=2, score="file"), model, params, table, scores=scores)
  assert found and found.keys() == given.keys()
  for path, rows in found.items():
    np.testing.assert_array_equal(rows, given[path])
    matrix = scores[f"{path}/kernel"].reshape(-1, rows.shape[1])
    expected = np.argsort(-np.abs(matrix), axis=0, kind="stable")[:2]
    np.testing.assert_array_equal(np.asarray(rows) // rows.shape[1], expected)
  path = "encoder/blocks_1/attn/q/kernel"
  hole = scores[path].copy()
  hole[2, 3] = np.nan
  for wrong, sentence in (
    ({p: v for p, v in scores.items() if p != path}, f"have none for '{path}'"),
    (scores | {path: scores[path][:5]}, r"are float32\[5, 8\]; the leaf needs .* \[8, 8\]"),
    (scores | {path: scores[path].astype(np.int32)}, "are int32"),
    (scores | {path: hole}, f"'{path}' hold NaN"),
  ):
    with pytest.raises(ValueError, match=sentence):
      choose(method, model, params, table, scores=wrong)
  with pytest.raises(ValueError, match="score='file' needs gps.scores=FILE"):
    choose(GPS(score="file"), model, params, table)
  with pytest.raises(FileNotFoundError, match="no.safetensors does not exist"):
    choose(GPS(score="file", scores=str(tmp_path / "no.safetensors")), model, params, table)


def test_a_permutation_gives_each_neuron_the_inputs_of_another():
  model, params, table = tiny()
  plain, permuted, again, other = (
    choose(GPS(k=2, score="magnitude", row_permutation=on), model, params, table)
    if seed == 0 else selected.choose(
      GPS(k=2, score="magnitude", row_permutation=on), model, params, table,
      type("Other", (), {"seed": seed}))
    for on, seed in ((False, 0), (True, 0), (True, 0), (True, 1)))
  moved, orders = 0, set()
  for path, rows in plain.items():
    fan_out = rows.shape[1]
    columns = lambda rows: [tuple(c) for c in np.asarray(rows).T // fan_out]  # noqa: B023, E731
    assert sorted(columns(rows)) == sorted(columns(permuted[path]))
    np.testing.assert_array_equal(np.asarray(permuted[path]) % fan_out,
                                  np.broadcast_to(np.arange(fan_out), rows.shape))
    np.testing.assert_array_equal(permuted[path], again[path])
    moved += columns(rows) != columns(permuted[path])
    orders.add(np.array_equal(permuted[path], other[path]))
  assert moved > 0.8 * len(plain) and orders != {True}


@pytest.mark.parametrize("level", [
  "neuron", *(pytest.param(level, marks=pytest.mark.slow) for level in ("net", "channel"))])
def test_no_weight_of_a_skipped_block_is_chosen(level):
  model, params, table = tiny()
  method = GPS(k=4, score="random", level=level, skip=(0, 2))
  everything = choose(GPS(k=4, score="random", level=level), model, params, table)
  found = choose(method, model, params, table)
  blocks = lambda found: {m[1] for p in found if (m := re.search(r"blocks_(\d)", p))}  # noqa: E731
  assert blocks(everything) == {"0", "1", "2"}
  assert blocks(found) == {"1"}
  assert "patch_embed" in found or level == "channel"  # of many inputs, so with a common mean
  tuned = Tuned(model, (selected.told(method, found),), table)
  variables = {"params": params, **tuned.init(jax.random.key(1), params)}
  filled = selected.written(tuned, variables, "gps", found)
  assert {path.rpartition("/")[0] for path in flat(filled["gps"])} == set(found)
  x = jax.random.normal(jax.random.key(2), (2, 8, 8, 3))
  np.testing.assert_array_equal(tuned.apply(filled, x), model.apply({"params": params}, x))
  trained = flat(tuned.split(filled)[0])
  assert "params/encoder/blocks_0/mlp/fc1/bias" in trained
  resting = Tuned(model, (selected.told(GPS(
    k=4, score="random", level=level, skip=(0, 2), skip_biases=True), found),), table)
  without = trained.keys() - flat(resting.split(filled)[0]).keys()
  assert without == {p for p in trained if re.match(r"params/encoder/blocks_[02]/", p)}


def test_blocks_are_counted_through_the_stages():
  model = models.Swin(4, width=8, depths=(1, 2), heads=(1, 2), window=2, patch=4, image_size=16)
  x = jnp.zeros((1, 16, 16, 3))
  params, table = jax.jit(model.init)(jax.random.key(0), x)["params"], sites(model, x)
  found = choose(GPS(score="magnitude", skip=(1,)), model, params, table)
  assert {m[0] for path in found if (m := re.match(r"stages_\d/blocks_\d", path))} == {
    "stages_0/blocks_0", "stages_1/blocks_1"}
  assert "stages_1/downsample/reduction" in found
  with pytest.raises(ValueError, match=r"skip=\(3,\) names block 3; the model has 3 blocks"):
    choose(GPS(score="magnitude", skip=(3,)), model, params, table)
  inside = GPS(score="magnitude", sites="stages_0/blocks_0/.*", skip=(0,))
  with pytest.raises(ValueError, match=r"skip=\(0,\) leaves none of the 6 selected sites"):
    choose(inside, model, params, table)


@pytest.mark.parametrize("level, loop", [
  pytest.param("neuron", "scan", marks=pytest.mark.slow)])
def test_a_scan_chooses_what_the_unrolled_model_chooses(level, loop):
  model, params, table = tiny()
  method = GPS(k=2, level=level, score="random")
  expected = choose(method, model, params, table)
  scanned = model.clone(loop=loop)
  stacked = stack_blocks(params)
  stacked_table = sites(scanned, jnp.zeros((1, 8, 8, 3)))
  found = choose(method, scanned, stacked, stacked_table)
  assert found.keys() == expected.keys()
  for path, rows in expected.items():
    np.testing.assert_array_equal(found[path], rows)
  tuned = Tuned(scanned, (method,), stacked_table)
  variables = {"params": stacked, **tuned.init(jax.random.key(1), stacked)}
  filled = flat(selected.written(tuned, variables, "gps", found)["gps"])
  unrolled = Tuned(model, (method,), table)
  variables = {"params": params, **unrolled.init(jax.random.key(1), params)}
  plain = selected.written(unrolled, variables, "gps", expected)["gps"]
  for path, leaf in flat(stack_blocks(plain)).items():
    np.testing.assert_array_equal(filled[path], leaf)
  for more, asked in (({"level": "net"}, "level='net'"), ({"skip": (0,)}, r"skip=\(0,\)")):
    with pytest.raises(ValueError, match=f"^GPS: a scan holds .* which {asked} does not give"):
      choose(GPS(score="random", **more), scanned, stacked, stacked_table)
    with pytest.raises(ValueError, match="^GPS: a scan holds"):
      Tuned(scanned, (GPS(score="random", chosen=(".*=3",), **more),), stacked_table)


def test_scores_of_a_stacked_tree_are_taken_apart():
  model, params, table = tiny()
  scores = {path: np.random.default_rng(leaf.size).standard_normal(leaf.shape).astype(np.float32)
            for path, leaf in flat(params).items() if path.endswith("kernel")}
  plain = choose(GPS(), model, params, table, scores=scores)
  scanned = model.clone(loop="scan")
  found = choose(GPS(), scanned, stack_blocks(params), sites(scanned, jnp.zeros((1, 8, 8, 3))),
                 scores=flat(stack_blocks(nest(scores))))
  for path, rows in plain.items():
    np.testing.assert_array_equal(found[path], rows)


@pytest.mark.parametrize("wrong, sentence", [
  ({"scores": "x"}, "scores='x' is given, but score='contrast'"),
  ({"drop_path": 1.0}, r"drop_path=1.0 is outside \[0, 1\)"),
  ({"row_permutation": True, "level": "net"}, "row_permutation acts on .* level='net'"),
  ({"skip": 3}, "skip=3 is no tuple of whole numbers"),
  ({"skip": (True,)}, r"skip=\(True,\) is no tuple of whole numbers"),
])
def test_fields_out_of_range_are_refused(wrong, sentence):
  with pytest.raises(ValueError, match=f"^GPS: {sentence}"):
    GPS(**wrong)
