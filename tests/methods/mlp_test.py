"""MLP-k: the head is all that is trained, and the config builds the model that has it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models, statistics, weights
from peft_jax.count import count
from peft_jax.methods import SSF, Linear, MLPHead
from peft_jax.models.layers import Head
from peft_jax.sites import sites
from peft_jax.train import config as config_lib
from peft_jax.tree import flat
from peft_jax.tuned import Tuned, join


def tuned(method, name="vit_test", classes=3, **options):
  model = models.create(name, num_classes=classes, **options)
  return Tuned(model, method if isinstance(method, tuple) else (method,),
               sites(model, models.images(model)))


def test_the_papers_numbers_on_vit_b16():
  for layers, numbers in ((2, 669_028), (3, 1_261_156)):
    method = MLPHead(layers=layers)
    found = count(tuned(method, "vit_b16", 100, **method.builds))
    assert found["trained"] == found["head"] == numbers
    assert found["backbone_without_head"] == 85_798_656


@pytest.mark.parametrize("name", ["vit_test", "swin_test", "convnext_test"])
def test_the_head_is_trained_and_its_statistics_are_not(name):
  made = tuned(MLPHead(layers=2), name, head_layers=2)
  stats = statistics.start(made.table)
  assert {p: (v.shape, float(v[0])) for p, v in flat(stats).items()} == {
    "batch_stats/head/norm_0/mean": ((24,), 0.0), "batch_stats/head/norm_0/var": ((24,), 1.0)}
  shapes = jax.eval_shape(made.model.init, jax.random.key(0), models.images(made.model))
  assert jax.tree.map(lambda v: (v.shape, v.dtype), stats) == {
    "batch_stats": jax.tree.map(lambda v: (v.shape, v.dtype), shapes["batch_stats"])}
  labels = flat(made.labels(shapes))
  assert {labels[path] for path in flat(stats)} == {"freeze"}
  trained = {path for path, label in labels.items() if label != "freeze"}
  assert trained == {path for path in labels if path.startswith("params/head/")}
  assert {labels[path] for path in trained} == {"head"}
  train, frozen = made.split(shapes)
  assert set(flat(train)) == trained and flat(stats).keys() < flat(frozen).keys()


@pytest.mark.slow
@pytest.mark.parametrize("name, loop, options", [
  ("vit_test", "scan_remat", {}),
  ("swin_test", "remat", {"depths": (1, 1), "image_size": 28}),
  ("convnext_test", "remat", {"depths": (1, 1, 1, 1)}),
])
def test_the_laws_of_all_methods(name, loop, options):
  """As in contract_test, whose models have no such head: loops, gradients, batch mates."""
  made = tuned(MLPHead(), name, head_layers=3, **options)
  draw, size = np.random.default_rng(0).standard_normal, made.model.image_size
  params = jax.tree.map(lambda v: 0.3 * draw(v.shape, np.float32), made.shapes["params"])
  stats = jax.tree.map(lambda v: v + 0.3 * draw(v.shape, np.float32) ** 2,
                       statistics.start(made.table))
  x = draw((5, size, size, 3), np.float32)

  @functools.partial(jax.jit, static_argnums=0)
  def outcome(method, params, x):
    train, frozen = method.split({"params": params, **stats})

    def loss(train):
      y = method.apply(join(train, frozen), x)
      return jnp.sum(jnp.square(y)), y

    return jax.grad(loss, has_aux=True)(train)

  gradients, y = outcome(made, params, x)
  assert {p for p in flat(params) if p.startswith("head/")} == {
    p.removeprefix("params/") for p in flat(gradients)}
  for path, gradient in flat(gradients).items():
    assert abs(gradient).max() > 1e-3, path
  other = params | {"head": jax.tree.map(jnp.flip, params["head"])}
  scale = float(abs(y).max())
  assert abs(outcome(made, other, x)[1] - y).max() > 1e-2 * scale
  among = outcome(made, params, jnp.concatenate([x[3:], -x[3:], x[:1]]))[1]
  np.testing.assert_allclose(among[:2], y[3:], rtol=1e-5, atol=1e-5 * scale)
  looped = tuned(MLPHead(), name, head_layers=3, loop=loop, **options)
  again, same = outcome(looped, models.stack_blocks(params) if "scan" in loop else params, x)
  np.testing.assert_allclose(same, y, rtol=1e-5, atol=1e-5 * scale)
  for path, gradient in flat(gradients).items():
    size = float(abs(gradient).max())
    np.testing.assert_allclose(flat(again)[path], gradient, rtol=2e-4, atol=2e-4 * size)


def test_other_methods_leave_the_head_to_itself():
  sites_of_ssf = flat(tuned(SSF(), head_layers=3).shapes["ssf"])
  assert sites_of_ssf.keys() == flat(tuned(SSF()).shapes["ssf"]).keys()
  both = tuned((SSF(), MLPHead()), head_layers=3)
  train, _ = both.split(both.shapes)
  assert {path.split("/")[0] for path in flat(train)} == {"params", "ssf"}
  assert {path.split("/")[1] for path in flat(train["params"])} >= {"hidden_1", "norm_1", "out"}
  alone = tuned(Linear(), head_layers=3)  # the option of the model is enough
  assert flat(alone.split(alone.shapes)[0]).keys() == {
    path for path in flat(train) if path.startswith("params/head/")}


def test_a_model_with_another_head_is_refused():
  for layers, options in ((3, {}), (3, {"head_layers": 2}), (1, {"head_layers": 2})):
    made = tuned(MLPHead(layers=layers), **options)
    has = options.get("head_layers", 1)
    with pytest.raises(ValueError, match=rf"layers={layers}\): the model's head has {has} of them"):
      made.split(made.shapes)


def config(methods, **options):
  made = config_lib.default().unlock()
  made.weights, made.model.name, made.methods = "random", "vit_test", methods
  made.update_from_flattened_dict({key.replace("__", "."): v for key, v in options.items()})
  return made


def test_the_one_word_in_a_config_builds_the_head():
  for methods in (("mlp",), ("ssf,mlp",), ("mlp", "ssf")):
    resolved = config_lib.resolve(config(methods))
    assert (resolved.model.head_layers, resolved.model.head_dropout) == (3, 0.1)
    again = config_lib.resolve(resolved)
    assert config_lib.flatten(again) == config_lib.flatten(resolved)
  resolved = config_lib.resolve(config(("mlp",), mlp__layers=5, mlp__dropout=0.0))
  assert (resolved.model.head_layers, resolved.model.head_dropout) == (5, 0.0)
  resolved = config_lib.resolve(config(("ssf",)))
  assert (resolved.model.head_layers, resolved.model.head_dropout) == (1, 0.0)
  resolved = config_lib.resolve(config(("ssf",), model__head_layers=2))
  assert (resolved.model.head_layers, resolved.model.head_dropout) == (2, 0.0)


def test_a_config_that_says_two_things_is_refused():
  with pytest.raises(ValueError, match="model.head_layers=5, but methods=mlp builds a model with"):
    config_lib.resolve(config(("mlp",), model__head_layers=5))


DEEP = models.create("vit_test", num_classes=200, head_layers=4)
FRESH = {
  "by loading": lambda file: weights.load(file, DEEP, key=jax.random.key(0))[0]["head"],
  "by itself": lambda _: jax.jit(Head(200, 4, 0.1, "float32").init)(
    jax.random.key(0), np.ones((1, 24), np.float32))["params"],
}


@pytest.mark.parametrize("how", FRESH)
def test_hidden_layers_start_by_the_width_and_the_last_as_any_head(backbone, how):
  head = flat(FRESH[how](backbone))
  assert len(head) == 3 * 4 + 2
  hidden = np.stack([head[f"hidden_{i}/kernel"] for i in range(3)])
  np.testing.assert_allclose(hidden.std(), np.sqrt(2 / 24), rtol=0.1)
  assert abs(hidden[0] - hidden[1]).max() > 0.1
  assert abs(hidden).max() > 2.5 * np.sqrt(2 / 24)  # not truncated
  np.testing.assert_allclose(head["out/kernel"].std(), 0.02, rtol=0.1)
  for path, leaf in head.items():
    if not path.endswith("kernel"):
      assert (leaf == (1 if path.endswith("scale") else 0)).all(), path


def test_a_files_own_deep_head_is_not_loaded(tmp_path):
  shapes, draw = models.parameters(DEEP), np.random.default_rng(0).normal
  params = jax.tree.map(lambda leaf: draw(size=leaf.shape).astype(np.float32), shapes)
  weights.save(tmp_path / "w.npz", params)
  loaded, base = weights.load(tmp_path / "w.npz", DEEP, key=jax.random.key(1))
  assert "head/hidden_0/kernel: a head of other classes" in base.skipped
  before, after = flat(params), flat(loaded)
  assert before.keys() == after.keys()
  kept = {path for path, leaf in before.items() if np.array_equal(leaf, after[path])}
  assert kept == {path for path in before if not path.startswith("head")}


@pytest.mark.parametrize("spec", ["file", pytest.param("random", marks=pytest.mark.slow)])
def test_a_head_that_starts_as_in_vpts_code(backbone, spec):
  spec = backbone if spec == "file" else spec
  load = functools.partial(weights.load, spec, key=jax.random.key(0))
  for layers, last in ((1, "head"), (3, "head/out")):
    model = models.create("vit_test", num_classes=200, head_layers=layers)
    small, made = (flat(load(model, head=head)[0]) for head in ("small", "vpt"))
    assert small.keys() == made.keys()
    other = {p for p, leaf in small.items() if not np.array_equal(leaf, made[p])}
    assert other == {f"{last}/kernel", f"{last}/bias"}
    np.testing.assert_allclose(made[f"{last}/kernel"].std(), np.sqrt(2 / 200), rtol=0.05)
    assert abs(made[f"{last}/kernel"]).max() > 3 * np.sqrt(2 / 200)  # not truncated
    np.testing.assert_allclose(made[f"{last}/bias"], -4.5951199, rtol=1e-6)


def test_the_start_of_the_head_is_a_key_of_the_config():
  with pytest.raises(ValueError, match="head_init='vtp' does not exist; did you mean 'vpt'?"):
    config_lib.resolve(config(("linear",), head_init="vtp"))
  assert config_lib.resolve(config(("linear",), head_init="vpt")).head_init == "vpt"
