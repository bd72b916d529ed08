"""GPS: the gradient of chosen entries, counts, and the dense mask as the oracle of training."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from peft_jax import models
from peft_jax.count import count
from peft_jax.methods import GPS, sparse
from peft_jax.selection.places import choose, told, written
from peft_jax.sites import sites
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned, join

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)


@pytest.mark.parametrize("form", ["entries", "kernel"])
@pytest.mark.parametrize("layer", layers.LAYERS.values(), ids=layers.LAYERS)
def test_forms_agree(layer, form):
  layers.assert_forms_agree(GPS(sites="layer", k=2, score="magnitude", form=form), layer)


def test_golden_gradients_of_entries():
  x = jnp.array([[1, 0, 2], [0, 1, 1], [3, 1, 0]], jnp.float32)
  dy = jnp.array([[1, 0], [2, -1], [0, 1]], jnp.float32)
  for inputs, expected in (([[2, 0]], [[4, 3]]), ([[2, 0], [1, 2]], [[4, 3], [2, -1]])):
    index = sparse.places(jnp.array(inputs, jnp.int32), 2)
    for per_neuron in (True, False):
      np.testing.assert_array_equal(sparse.entry_gradients(x, dy, index, per_neuron), expected)


@pytest.mark.parametrize("n", [1, 5, 12, 13, 30])
def test_gradients_of_any_entries_are_those_of_the_kernel(n):
  rng = np.random.default_rng(n)
  x, dy = (rng.standard_normal((7, width)).astype(np.float32) for width in (6, 5))
  index = rng.permutation(30)[:n].astype(np.int32)[None]
  expected = (x.T @ dy).ravel()[index]
  found = sparse.entry_gradients(jnp.asarray(x), jnp.asarray(dy), jnp.asarray(index), False)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name, counts, head", [
  ("vit_base_patch16_224", (167_424, 251_136, 334_848), 769),
  ("swin_base_patch4_window7_224", (282_168, 392_376, 502_584), 1025),
  ("convnext_base", (238_464, 348_672, 458_880), 1025),
])
def test_counts(name, counts, head):
  model, _, table = layers.by_shapes(name)
  for k, expected in enumerate(counts, 1):
    found = count(Tuned(model, (GPS(k=k),), table))
    assert found["trained"] - found["head"] == expected
    assert found["head"] == head * model.num_classes


def test_what_is_trained_by_role():
  model, _, table = layers.by_shapes("swin_base_patch4_window7_224")
  trained = lambda method: count(Tuned(model, (method,), table)).get("backbone", 0)  # noqa: E731
  assert trained(GPS()) == 108_416 + 63_544
  assert trained(GPS(rel_pos=False)) == 108_416
  assert trained(GPS(biases=False)) == 63_544
  assert trained(GPS(norms=True)) - trained(GPS()) == 57_600
  model, _, table = layers.by_shapes("convnext_base")
  assert trained(GPS()) - trained(GPS(layer_scale=False)) == 18_048


@pytest.mark.parametrize("wrong, sentence", [
  ({"k": 0}, "^GPS: k=0; it must be at least 1"),
  ({"level": "weight"}, "^GPS: level='weight'; it must be one of"),
  ({"score": "hessian"}, "^GPS: score='hessian'; it must be one of"),
  ({"form": "dense"}, "^GPS: form='dense'"),
  ({"temperature": 0.0}, "^GPS: temperature=0.0; it must be positive"),
])
def test_options_out_of_range_are_refused(wrong, sentence):
  with pytest.raises(ValueError, match=sentence):
    GPS(**wrong)


def test_what_rests_in_skipped_blocks():
  model, _, table = layers.by_shapes("vit_base_patch16_224")
  trained = lambda **more: count(Tuned(model, (GPS(**more),), table))  # noqa: E731
  neurons = 4 * 768 + 3072 + 768  # of a block
  assert trained()["gps"] - trained(skip=(0, 5))["gps"] == 2 * neurons
  assert trained(skip=(0, 5))["backbone"] == trained()["backbone"]
  found = trained(skip=(0, 5), skip_biases=True)
  assert found["backbone"] == trained()["backbone"] - 2 * neurons
  assert trained(level="shared", k=3)["gps"] == trained(k=3)["gps"]


def test_what_has_not_been_chosen_is_told():
  model, x = tiny()
  with pytest.raises(ValueError, match="^GPS: what level='net' trains depends on"):
    Tuned(model, (GPS(level="net"),), sites(model, x))
  tuned = Tuned(model, (GPS(),), sites(model, x))
  params = model.init(jax.random.key(0), x)["params"]
  values = flat(tuned.init(jax.random.key(1), params))
  assert all(jnp.isnan(leaf).all() for path, leaf in values.items() if path.endswith("/value"))


def tiny():
  model = models.ViT(4, width=12, depth=2, heads=3, patch=4, image_size=8, layer_scale=0.5)
  return model, jax.random.normal(jax.random.key(5), (6, 8, 8, 3))


class Config:
  seed = 0


@pytest.mark.parametrize("level, form", [
  ("neuron", "entries"),
  *(pytest.param(level, form, marks=pytest.mark.slow) for level, form in (
    ("neuron", "kernel"), ("layer", "entries"), ("net", "entries"), ("net", "kernel"),
    ("shared", "entries"), ("channel", "entries"), ("matrix", "kernel"))),
])
def test_twenty_steps_of_adamw_equal_those_of_a_masked_kernel(level, form):
  """The oracle trains the backbone itself: dense gradients, updates masked after the decay."""
  model, x = tiny()
  table = sites(model, x)
  params = model.init(jax.random.key(0), x)["params"]
  move = lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)  # noqa: E731
  params = jax.tree.map(move, params)
  method = GPS(k=2, level=level, score="random", form=form)
  places = choose(method, model, params, table, Config)
  method = told(method, places)
  tuned = Tuned(model, (method,), table)
  variables = written(
    tuned, {"params": params, **tuned.init(jax.random.key(1), params)}, "gps", places
  )
  # Key biases have gradients of rounding noise, which Adam makes steps of.
  frozen_biases = {path for path in flat(params) if path.endswith("/k/bias")}
  train, frozen = tuned.split(variables)
  train = flat(train)
  for path in frozen_biases:
    frozen = join({"params": nest({path: train.pop(f"params/{path}")})}, frozen)
  train = nest(train)
  labels = jnp.arange(6) % 4

  def loss_of(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  tx = optax.adamw(1e-2, weight_decay=0.1)
  sparse_loss = lambda train: loss_of(tuned.apply(join(train, frozen), x))  # noqa: E731
  keep = {path: jnp.zeros(leaf.shape, bool) for path, leaf in flat(params).items()}
  for path in flat(train["params"]):
    keep[path] = jnp.ones_like(keep[path])
  for site, index in places.items():
    mask = keep[f"{site}/kernel"]
    keep[f"{site}/kernel"] = mask.ravel().at[index.ravel()].set(True).reshape(mask.shape)
  keep = nest(keep)
  dense_loss = lambda params: loss_of(model.apply({"params": params}, x))  # noqa: E731

  @jax.jit
  def sparse_step(train, opt):
    updates, opt = tx.update(jax.grad(sparse_loss)(train), opt, train)
    return optax.apply_updates(train, updates), opt

  @jax.jit
  def dense_step(params, opt):
    updates, opt = tx.update(jax.grad(dense_loss)(params), opt, params)
    updates = jax.tree.map(lambda u, k: jnp.where(k, u, 0.0), updates, keep)
    return optax.apply_updates(params, updates), opt

  own, opt, masked, masked_opt = train, tx.init(train), params, tx.init(params)
  with jax.numpy_dtype_promotion("standard"):
    for _ in range(20):
      own, opt = sparse_step(own, opt)
      masked, masked_opt = dense_step(masked, masked_opt)
  merged, masked, start, kept = (flat(tree) for tree in (
    tuned.merge(join(own, frozen)), masked, params, keep))
  moved = 0
  for path in start:
    np.testing.assert_allclose(merged[path], masked[path], atol=2e-6, err_msg=path)
    np.testing.assert_array_equal(merged[path][~kept[path]], start[path][~kept[path]])
    moved += int((jnp.abs(merged[path] - start[path]) > 1e-3).sum())
  assert moved > 0.9 * sum(int(leaf.sum()) for leaf in kept.values())
