"""The head of several layers against NumPy, in training and in evaluation."""

import functools

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models
from peft_jax.models.layers import Head, fold_norms
from peft_jax.tree import flat, nest

D, B, CLASSES = 6, 9, 4
X = np.random.default_rng(0).normal(size=(B, D)).astype(np.float32)


def make(layers, dropout=0.0):
  """(Head, its variables, every number of them drawn)."""
  head, random = Head(CLASSES, layers, dropout, "float32"), np.random.default_rng(1)
  shapes = jax.eval_shape(head.init, jax.random.key(0), X)

  def draw(path, leaf):
    low, high = (0.3, 2.0) if path.endswith(("var", "scale")) else (-1.0, 1.0)
    return random.uniform(low, high, leaf.shape).astype(np.float32)

  paths = {path: draw(path, leaf) for path, leaf in flat(shapes).items()}
  return head, nest(paths), paths


def numpy_head(v, x, layers, train):
  """(logits, statistics after it) by the formula of VPT's MLP: linear, ReLU, norm."""
  x, kept = x.astype(np.float64), {}
  for i in range(layers - 1):
    x = np.maximum(x @ v[f"params/hidden_{i}/kernel"] + v[f"params/hidden_{i}/bias"], 0)
    mean, var = (v[f"batch_stats/norm_{i}/{name}"] for name in ("mean", "var"))
    if train:
      kept[f"batch_stats/norm_{i}/mean"] = 0.9 * mean + 0.1 * x.mean(0)
      kept[f"batch_stats/norm_{i}/var"] = 0.9 * var + 0.1 * x.var(0)
      mean, var = x.mean(0), x.var(0)
    x = (x - mean) / np.sqrt(var + 1e-5) * v[f"params/norm_{i}/scale"] + v[f"params/norm_{i}/bias"]
  return x @ v["params/out/kernel"] + v["params/out/bias"], kept


@pytest.mark.parametrize("layers", [2, 4])
def test_linear_relu_norm_in_this_order(layers):
  head, variables, v = make(layers)
  logits = head.apply(variables, X)
  np.testing.assert_allclose(logits, numpy_head(v, X, layers, False)[0], rtol=1e-4, atol=1e-5)
  logits, kept = head.apply(variables, X, train=True, mutable=["batch_stats"])
  expected, moved = numpy_head(v, X, layers, True)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  assert flat(kept).keys() == moved.keys()
  for path, value in flat(kept).items():
    np.testing.assert_allclose(value, moved[path], rtol=1e-4, atol=1e-5)
    assert value.dtype == np.float32 and abs(value - v[path]).max() > 1e-3


def test_dropout_comes_last_and_in_training_only():
  head, _, v = make(2, dropout=0.5)
  v |= {"params/out/kernel": np.eye(D, CLASSES, dtype=np.float32),
        "params/out/bias": np.zeros(CLASSES, np.float32)}
  kept, _ = numpy_head(v, X, 2, True)
  apply = functools.partial(head.apply, nest(v), X)
  y, _ = apply(train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
  gone = np.asarray(y == 0)
  assert 0.2 < gone.mean() < 0.8
  np.testing.assert_allclose(y[~gone], 2 * kept[~gone], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(apply(), numpy_head(v, X, 2, False)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [2, 3])
def test_folded_norms_change_no_logit_and_need_no_statistics(layers):
  head, variables, _ = make(layers)
  logits = head.apply(variables, X)
  neutral = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
  other = head.apply({**variables, "batch_stats": neutral}, X)
  assert abs(other - logits).max() > 0.1
  trees = ({"head": variables[name]} for name in ("params", "batch_stats"))
  params = fold_norms(*trees)["head"]
  assert set(params) == {f"hidden_{i}" for i in range(layers - 1)} | {"out"}
  np.testing.assert_allclose(head.apply({"params": params}, X), logits, rtol=1e-4, atol=1e-4)
  with pytest.raises(flax.errors.ScopeCollectionNotFound):  # forgotten, not folded
    head.apply({"params": variables["params"]}, X)


def test_a_tree_without_statistics_is_folded_to_itself():
  params = {"head": {"kernel": np.ones((2, 3))}, "norm": {"scale": np.ones(2)}}
  assert flat(fold_norms(params, {})) == flat(params)


HIDDEN = {"kernel": (24, 24), "bias": (24,)}
MLP = {
  "hidden_0": HIDDEN,
  "norm_0": {"scale": (24,), "bias": (24,)},
  "out": {"kernel": (24, 3), "bias": (3,)},
}


@pytest.mark.parametrize("name", ["vit_test", "swin_test", "convnext_test"])
def test_every_backbone_takes_it_in_place_of_its_head(name):
  plain = models.parameters(models.create(name, num_classes=3))
  model = models.create(name, num_classes=3, head_layers=2, head_dropout=0.1)
  deep = models.parameters(model)
  assert jax.tree.map(jnp.shape, deep.pop("head")) == MLP
  assert jax.tree.map(jnp.shape, plain.pop("head")) == {"kernel": (24, 3), "bias": (3,)}
  assert jax.tree.map(jnp.shape, deep) == jax.tree.map(jnp.shape, plain)


def test_both_heads_of_a_distilled_vit_are_deep():
  model = models.create("vit_test", num_classes=3, head_layers=2, distilled=True)
  params = jax.tree.map(jnp.shape, models.parameters(model))
  assert params["head"] == params["head_dist"] == MLP


@pytest.mark.parametrize("layers, count", [
  (1, 76_900), (2, 669_028), (3, 1_261_156), (5, 2_445_412), (9, 4_813_924)])
def test_numbers_on_the_width_of_vit_b16(layers, count):
  x = jax.ShapeDtypeStruct((1, 768), jnp.float32)
  head = Head(100, layers, 0.1, "float32")
  params = jax.eval_shape(head.init, jax.random.key(0), x)["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("options, sentence", [
  ({"head_layers": 0}, "head_layers=0 must be a whole number above 0"),
  ({"head_layers": 2.0}, "head_layers=2.0 must be a whole number"),
  ({"head_layers": 2, "head_dropout": 1.0}, r"head_dropout=1.0 must lie in \[0, 1\)"),
  ({"head_layers": 2, "head_bias": False}, "head_bias=False is for a projection"),
])
def test_options_that_do_not_exist(options, sentence):
  with pytest.raises(ValueError, match=sentence):
    models.create("vit_test", num_classes=3, **options)


def test_training_needs_two_images_and_a_stream_for_dropout():
  model = models.create("convnext_test", num_classes=3, head_layers=2, head_dropout=0.1,
                        widths=(4,), depths=(1,), image_size=8)
  variables = jax.eval_shape(model.init, jax.random.key(0), models.images(model))

  def trained(count, **rngs):
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"], rngs=rngs)
    return jax.eval_shape(apply, variables, models.images(model, count))

  with pytest.raises(ValueError, match="head_layers=2 needs two images or more on each device"):
    trained(1, dropout=jax.random.key(0))
  with pytest.raises(ValueError, match="head_dropout=0.1 with train=True draws from the rng"):
    trained(2)
  y, kept = trained(2, dropout=jax.random.key(0))
  assert y.shape == (2, 3) and set(flat(kept)) == {
    "batch_stats/head/norm_0/mean", "batch_stats/head/norm_0/var"}
