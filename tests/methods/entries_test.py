"""Chosen entries in every form: NumPy and autodiff as oracles, and the mask form of training."""

import dataclasses
import functools
import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models, partition
from peft_jax.methods import GPS, LoRA, entries, sparse
from peft_jax.methods.entries import Entries
from peft_jax.selection.places import choose, told, written
from peft_jax.sites import sites
from peft_jax.train import config as config_lib
from peft_jax.train import step as steps
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned, join

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

HOW = ("neuron", "input", "any", "kernel")
FORMS = ("entries", "kernel", "product")


def draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def chosen(how, fan_in, fan_out, rows, seed=0):
  """int32 [rows, fan_out] (of "any": [1, some 2.5 rows]), no place twice."""
  rng = np.random.default_rng(seed)
  if how in ("any", "kernel"):
    return rng.permutation(fan_in * fan_out)[None, : int(2.5 * fan_out)].astype(np.int32)
  if how == "input":
    inputs = np.tile(rng.permutation(fan_in)[:rows, None], fan_out)
  else:
    inputs = np.stack([rng.permutation(fan_in)[:rows] for _ in range(fan_out)], 1)
  return (inputs * fan_out + np.arange(fan_out)).astype(np.int32)


# The rules of `sparse`.


def test_golden_gradients_of_entries():
  x = jnp.array([[1, 0, 2], [0, 1, 1], [3, 1, 0]], jnp.float32)
  dy = jnp.array([[1, 0], [2, -1], [0, 1]], jnp.float32)
  for inputs, expected in (([[2, 0]], [[4, 3]]), ([[2, 0], [1, 2]], [[4, 3], [2, -1]])):
    index = sparse.places(jnp.array(inputs, jnp.int32), 2)
    for how in ("neuron", "any", "kernel"):
      np.testing.assert_array_equal(sparse.entry_gradients(x, dy, index, how), expected)
  index = sparse.places(jnp.array([[2, 2], [0, 0]], jnp.int32), 2)  # inputs shared by all
  for how in HOW:
    expected = [[4, -1], [1, 3]]
    np.testing.assert_array_equal(sparse.entry_gradients(x, dy, index, how), expected)


@pytest.mark.parametrize("n", [1, 5, 12, 13, 30])
@pytest.mark.parametrize("how", ["any", "kernel"])
def test_gradients_of_any_number_of_entries(how, n):
  x, dy = draw(0, 7, 6), draw(1, 7, 5)
  index = np.random.default_rng(n).permutation(30)[:n].astype(np.int32)[None]
  found = sparse.entry_gradients(jnp.asarray(x), jnp.asarray(dy), jnp.asarray(index), how)
  np.testing.assert_allclose(found, (x.T @ dy).ravel()[index], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", HOW[:3])
def test_product_and_its_gradients_are_those_of_a_matrix(how):
  x, dy, index = draw(0, 7, 6), draw(1, 7, 5), chosen(how, 6, 5, 3)
  value = draw(2, *index.shape)
  matrix = np.zeros(30, np.float32)
  matrix[index] = value
  matrix = matrix.reshape(6, 5)
  function = lambda value, x: sparse.product(value, x, jnp.asarray(index), 5, how)  # noqa: E731
  y, back = jax.vjp(function, jnp.asarray(value), jnp.asarray(x))
  dvalue, dx = back(jnp.asarray(dy))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  close(y, x @ matrix)
  close(dvalue, (x.T @ dy).ravel()[index])
  close(dx, dy @ matrix.T)


# Layers.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen(Entries):
  """Entries as `how` has them, of layers of any kind."""

  collection: str = "chosen"
  how: str = "any"

  def init(self, site, key, params):
    index = chosen(self.how, math.prod(site.fan_in), math.prod(site.fan_out), 2)
    if self.how != "any":
      index = index.reshape(2, *site.fan_out)
    return self.variables(params["kernel"], jnp.asarray(index))

  def rows(self, site):
    return self.how


@pytest.mark.parametrize("delta", [False, True], ids=["", "delta"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["neuron", "input", "any"])
def test_every_form_has_the_gradients_of_its_weights(how, form, delta):
  """Of the entries, of x, of the bias, and of a LoRA folded below, at a layer in the middle."""
  method = Chosen(sites="layer", how=how, form=form, delta=delta)
  tuned, variables, x = layers.attach(method, *layers.LAYERS["split_heads"])
  tuned = Tuned(tuned.model, (LoRA(sites="layer", rank=2), method), tuned.table)
  lora = tuned.init(jax.random.key(0), variables["params"])["lora"]
  variables |= layers.perturbed({"lora": lora}, 3)
  places = {"chosen": {"layer": {"index": variables["chosen"]["layer"].pop("index")}}}

  def loss(apply, variables, x):
    y = apply(join(variables, places), x)
    return jnp.sum(jnp.sin(y)), y

  by_weights = lambda variables, x: tuned.model.apply({"params": tuned.merge(variables)}, x)  # noqa: E731
  (found, y), (expected, expected_y) = (
    jax.grad(functools.partial(loss, apply), (0, 1), has_aux=True)(variables, x)
    for apply in (tuned.apply, by_weights)
  )
  np.testing.assert_allclose(y, expected_y, atol=1e-5)
  assert np.abs(y - tuned.model.apply({"params": variables["params"]}, x)).max() > 0.1
  found, expected = (flat({"variables": g[0], "x": g[1]}) for g in (found, expected))
  assert found.keys() == expected.keys() and "variables/lora/layer/a" in found
  for path, gradient in expected.items():
    assert "before" in path or np.abs(gradient).max() > 1e-2, path
    np.testing.assert_allclose(found[path], gradient, rtol=1e-4, atol=1e-4, err_msg=path)


@pytest.mark.parametrize("form", FORMS)
def test_forms_keep_a_layers_type(form):
  x = jnp.ones((2, 3, 6))
  model = layers.One(functools.partial(layers.nn.Dense, 5, dtype=jnp.bfloat16))
  params = model.init(jax.random.key(0), x)["params"]
  method = Chosen(sites="layer", form=form)
  tuned = Tuned(model, (method,), sites(model, x), head="")
  train, frozen = tuned.split({"params": params, **tuned.init(jax.random.key(1), params)})

  def loss(train, x):
    y = tuned.apply(join(train, frozen), x)
    assert y.dtype == jnp.bfloat16
    return y.astype(jnp.float32).sum()

  gradients = jax.grad(loss, (0, 1))(train, x)
  assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradients))
  assert float(jnp.abs(gradients[0]["chosen"]["layer"]["value"]).max()) > 1


def test_a_delta_is_added_and_has_no_mask_form():
  tuned, variables, _ = layers.attach(Chosen(sites="layer", delta=True), *layers.LAYERS["dense"])
  kernel = variables["params"]["layer"]["kernel"]
  value, index = (variables["chosen"]["layer"][name] for name in ("value", "index"))
  start = tuned.init(jax.random.key(0), variables["params"])["chosen"]["layer"]
  assert not start["value"].any() and start["value"].shape == index.shape
  expected = np.array(kernel).ravel()
  expected[index] += value
  merged = tuned.merge(variables)["layer"]["kernel"]
  np.testing.assert_array_equal(np.ravel(merged), expected)
  with pytest.raises(ValueError, match="^Chosen: form='mask' trains the entries themselves, so"):
    Chosen(form="mask", delta=True)


# What is copied.


def shapes_within(jaxpr):
  """The shapes of all intermediate values of a program, loops and calls included."""
  found = set()
  for equation in jaxpr.eqns:
    found |= {out.aval.shape for out in equation.outvars if hasattr(out.aval, "shape")}
    for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns")):
      inner = getattr(inner, "jaxpr", inner)
      found |= shapes_within(inner) if hasattr(inner, "eqns") else set()
  return found


@pytest.mark.parametrize("how", ["neuron", "input", "any"])
def test_only_a_product_leaves_kernels_alone_under_a_vmap_over_runs(how):
  """Temporaries of a step's gradient for 8 runs: the kernels are the largest arrays here."""
  runs, wide, images = 8, 192, jnp.ones((1, 2, 4))
  make = functools.partial(layers.nn.Dense, wide)

  class Two(layers.nn.Module):
    @layers.nn.compact
    def __call__(self, x):
      return layers.nn.Dense(wide, name="last")(layers.nn.Dense(wide, name="layer")(
        make(name="first")(x)))

  model = Two()
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  temporary = {}
  for form in FORMS:
    method = Chosen(sites="layer|last", how=how, form=form)
    tuned = Tuned(model, (method,), sites(model, images), head="")
    shapes = jax.eval_shape(
      lambda key, p, tuned=tuned: tuned.init(key, p), jax.random.key(0), params)
    train, frozen = tuned.split({"params": params, **shapes})
    many = jax.tree.map(lambda s: jax.ShapeDtypeStruct((runs, *s.shape), s.dtype), train)

    def gradient(train, frozen, x, tuned=tuned):
      return jax.grad(lambda train: jnp.sum(tuned.apply(join(train, frozen), x) ** 2))(train)

    each = jax.jit(jax.vmap(gradient, (0, None, None)))
    temporary[form] = each.lower(many, frozen, images).compile().memory_analysis()
  kernel = 4 * wide * wide
  temporary = {form: memory.temp_size_in_bytes for form, memory in temporary.items()}
  assert temporary["entries"] > runs * kernel
  assert temporary["kernel"] > runs * kernel
  assert temporary["product"] < 2 * kernel


@pytest.mark.parametrize("form", [
  "entries", *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS[1:])])
def test_one_kernel_remains_one_under_a_vmap_over_images(form):
  dense = functools.partial(layers.nn.Dense, 5)
  tuned, variables, x = layers.attach(Chosen(sites="layer", form=form), dense, (2, 4, 6), 6)
  tuned, images = dataclasses.replace(tuned, head=""), jnp.stack([x, 2 * x, 3 * x])
  train, frozen = tuned.split(variables)

  def gradient(train, x):
    return jax.grad(lambda train: jnp.sum(tuned.apply(join(train, frozen), x) ** 2))(train)

  each = jax.vmap(gradient, (None, 0))
  within = shapes_within(jax.make_jaxpr(each)(train, images).jaxpr)
  assert (3, 2, 4, 5) in within  # the output, of three images
  assert (3, 6, 5) not in within or form == "kernel"  # whose gradients are kernels
  found = each(train, images)["chosen"]["layer"]["value"]
  for one, image in zip(found, images, strict=True):
    np.testing.assert_allclose(one, gradient(train, image)["chosen"]["layer"]["value"], rtol=1e-5)


# Training.


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoKeys(GPS):
  """Without key biases, whose gradients are rounding noise that Adam makes steps of."""

  def trains(self, table, paths):
    return frozenset(p for p in super().trains(table, paths) if not p.endswith("k/bias"))


def config():
  config = config_lib.default().unlock()
  config.data.normalize, config.ema = "inception", 0.9
  config.optim.lr, config.optim.weight_decay, config.optim.clip = 2e-3, 0.1, 0.5
  config.optim.warmup_epochs = 0
  return config


BACKBONES = {
  "vit": models.ViT(4, width=12, depth=2, heads=3, patch=4, image_size=8, layer_scale=0.5),
  "convnext": models.ConvNeXt(4, (6, 8), (1, 2), image_size=16, layer_scale=0.5),
}


@functools.cache
def backbone(name):
  model, images = BACKBONES[name], models.images(BACKBONES[name], 2)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  return model, layers.perturbed(jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes), 2)


@functools.cache
def trained(name, method):
  """(start, parameters after twenty steps, their average, places) of a choice at random."""
  model, params = backbone(name)
  table = sites(model, models.images(model, 2))
  places = choose(method, model, params, table, config())
  tuned = Tuned(model, (told(method, places),), table)
  variables = {"params": params, **tuned.init(jax.random.key(1), params)}
  train, frozen = tuned.split(written(tuned, variables, "gps", places))
  tx = steps.optimizer(tuned, train, config().optim, steps_per_epoch=10)
  step = jax.jit(steps.training_step(tuned, tx, config()))
  state = steps.start(train, tx, config().ema)
  size, rng = model.image_size, np.random.default_rng(0)
  for _ in range(20):
    images = rng.integers(0, 256, (6, size, size, 3), np.uint8)
    state = step(state, frozen, {"image": images, "label": np.arange(6, dtype=np.int32) % 4})
  ends = (tuned.merge(join(state[part], frozen)) for part in ("train", "ema"))
  start, end, average = (flat(jax.device_get(tree)) for tree in (params, *ends))
  return start, end, average, {f"{path}/kernel": rows for path, rows in places.items()}


CASES = [
  pytest.param(name, level, form, marks=() if quick else pytest.mark.slow)
  for name, level, form in [
    *(("vit", "neuron", form) for form in FORMS), ("vit", "layer", "kernel"),
    ("vit", "net", "entries"), ("vit", "shared", "entries"), ("vit", "channel", "product"),
    ("convnext", "neuron", "entries"), ("convnext", "net", "entries"),
  ]
  for quick in [(name, level, form) == ("vit", "neuron", "entries")]
]


@pytest.mark.parametrize("name, level, form", CASES)
def test_twenty_steps_of_the_training_loop_equal_those_of_the_mask_form(name, level, form):
  method = NoKeys(k=2, level=level, score="random", form="mask")
  start, masked, masked_average, places = trained(name, method)
  _, own, average, _ = trained(name, dataclasses.replace(method, form=form))
  moved = 0
  for path in start:
    np.testing.assert_allclose(own[path], masked[path], atol=1e-6, rtol=0, err_msg=path)
    np.testing.assert_allclose(average[path], masked_average[path], atol=1e-6, rtol=0)
    if path.endswith("/kernel") and not path.startswith("head"):
      others = np.ones(start[path].size, bool)
      others[np.ravel(places.get(path, np.zeros(0, int)))] = False
      moved += int((np.abs(own[path] - start[path]).ravel()[~others] > 1e-3).sum())
      for end in (own, masked, average, masked_average):
        np.testing.assert_array_equal(end[path].ravel()[others], start[path].ravel()[others])
  # Some taps of a 7 x 7 convolution on 2 x 2 features never meet an image.
  assert moved > 0.8 * sum(np.size(rows) for rows in places.values())


@pytest.mark.parametrize("delta", [False, True])
def test_decay_pulls_a_delta_to_the_backbone_and_an_entry_to_zero(delta):
  method = Chosen(sites="layer", how="neuron", delta=delta)
  tuned, variables, _ = layers.attach(method, *layers.LAYERS["dense"])
  tuned = dataclasses.replace(tuned, head="")
  train, frozen = tuned.split(variables)
  optim = config().optim
  tx = steps.optimizer(tuned, train, optim, steps_per_epoch=10)
  with jax.numpy_dtype_promotion("standard"):
    zero = jax.tree.map(jnp.zeros_like, train)
    updates, _ = tx.update(zero, tx.init(train), train, masks={})
  stepped = jax.tree.map(jnp.add, train, updates)
  index = frozen["chosen"]["layer"]["index"]
  entries = lambda params: sparse.taken(params["layer"]["kernel"], index)  # noqa: E731
  before, after = (entries(tuned.merge(join(tree, frozen))) for tree in (train, stepped))
  aim = entries(variables["params"]) if delta else 0.0
  assert float(jnp.abs(before - aim).min()) > 1e-3
  keep = 1 - optim.lr * optim.weight_decay
  np.testing.assert_allclose(after - aim, keep * (before - aim), rtol=1e-5, atol=1e-7)
  assert float(jnp.abs(after - before).max()) > 1e-5


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_a_file_has_what_a_mask_trained(loop):
  model = models.ViT(4, width=12, depth=2, heads=3, patch=4, image_size=8, loop=loop)
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  params = model.init(jax.random.key(1), x)["params"]
  tuned = Tuned(model, (GPS(score="random", k=2, form="mask"),), sites(model, x))
  start = {"params": params, **tuned.init(jax.random.key(2), params)}
  masks, trained = partition.masks(tuned, start), flat(start["params"])
  for path, mask in masks.items():
    leaf = trained[path.removeprefix("params/")]
    noise = jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    trained[path.removeprefix("params/")] = leaf + jnp.where(mask, noise, 0)
  variables = start | {"params": nest(trained)}
  filed, held = entries.filed(tuned), entries.packed(tuned, variables, params)
  assert flat(held["params"]).keys() == flat(params).keys()
  for path, leaf in flat(params).items():
    np.testing.assert_array_equal(flat(held["params"])[path], leaf)
  y, base = tuned.apply(variables, x), tuned.apply(start, x)
  assert float(jnp.max(jnp.abs(y - base))) > 1e-3
  np.testing.assert_allclose(filed.apply(held, x), y, rtol=1e-5, atol=1e-5)


def test_what_no_file_could_say_is_refused():
  methods = (LoRA(rank=2), GPS(form="mask"))
  with pytest.raises(ValueError, match="^GPS: form='mask' trains .* put GPS first in `methods`"):
    entries.check(methods)
  entries.check(methods[::-1])
