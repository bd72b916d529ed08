"""DoRA: formula, gradient, start, dropout, company, counts, where it cannot act."""

import dataclasses
import importlib.util
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models
from peft_jax.methods import SSF, DoRA, LoRA
from peft_jax.sites import sites
from peft_jax.tree import flat
from peft_jax.tuned import Tuned, join

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

METHOD = DoRA(rank=2, alpha=3.0, sites="layer")
SCALE = 1.5
EACH = pytest.mark.parametrize("layer", layers.UNGROUPED.values(), ids=layers.UNGROUPED)


def matrices(variables, fan_in):
  """float64 W [inputs, outputs], b, A, B, m of the layer."""
  own, leaves = variables["params"]["layer"], variables["dora"]["layer"]
  inputs = int(np.prod(fan_in))
  w, a = (np.asarray(x, np.float64).reshape(inputs, -1) for x in (own["kernel"], leaves["a"]))
  b, m = (np.asarray(x, np.float64).reshape(-1) for x in (own["bias"], leaves["magnitude"]))
  return w, b, a, np.asarray(leaves["b"], np.float64).reshape(a.shape[1], -1), m


def headless(tuned):
  return dataclasses.replace(tuned, head="")


def reweighted(w, a, b, m):
  v = w + SCALE * a @ b
  return m * v / np.linalg.norm(v, axis=0)


@EACH
def test_forms_agree(layer):
  layers.assert_forms_agree(METHOD, layer)


@EACH
def test_the_merged_kernel_is_the_formula_in_numpy(layer):
  tuned, variables, _ = layers.attach(METHOD, *layer)
  w, bias, a, b, m = matrices(variables, tuned.table["layer"].fan_in)
  merged = tuned.merge(variables)["layer"]
  expected = reweighted(w, a, b, m)
  assert np.max(np.abs(expected - w)) > 0.1
  np.testing.assert_allclose(merged["kernel"].reshape(w.shape), expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(merged["bias"].reshape(-1), bias.astype(np.float32))


@EACH
def test_the_start_is_the_backbone(layer):
  tuned, variables, x = layers.attach(METHOD, *layer)
  start = {**variables, **tuned.init(jax.random.key(3), variables["params"])}
  kernel = np.asarray(variables["params"]["layer"]["kernel"])
  fan_in = tuned.table["layer"].fan_in
  norm = np.sqrt((kernel.astype(np.float64) ** 2).sum(axis=tuple(range(len(fan_in)))))
  np.testing.assert_allclose(start["dora"]["layer"]["magnitude"], norm, rtol=1e-6)
  base = tuned.model.apply({"params": variables["params"]}, x)
  assert float(jnp.max(jnp.abs(tuned.apply(variables, x) - base))) > 0.1
  np.testing.assert_array_equal(tuned.apply(start, x), base)
  np.testing.assert_allclose(jax.jit(tuned.apply)(start, x), base, rtol=1e-5, atol=1e-5)


def test_the_gradient_holds_the_norm_constant():
  tuned, variables, x = layers.attach(METHOD, *layers.LAYERS["dense"])
  train, frozen = headless(tuned).split(variables)
  c = np.random.default_rng(5).standard_normal((2, 3, 5))
  weight = jnp.asarray(c, jnp.float32)
  got = jax.grad(lambda own: jnp.sum(weight * tuned.apply(join({"dora": own}, frozen), x)))(
    train["dora"])["layer"]
  w, _, a, b, m = matrices(variables, (6,))
  grad = np.asarray(x, np.float64).reshape(-1, 6).T @ c.reshape(-1, 5)  # of W'
  v = w + SCALE * a @ b
  norm = np.linalg.norm(v, axis=0)
  expected = {
    "a": SCALE * (grad * m / norm) @ b.T,
    "b": SCALE * a.T @ (grad * m / norm),
    "magnitude": (grad * v / norm).sum(0),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-4)
  turned = grad - v / norm * (grad * v / norm).sum(0)  # what a gradient through the norm keeps
  full = SCALE * (turned * m / norm) @ b.T
  assert np.max(np.abs(full - expected["a"])) > 0.1 * np.max(np.abs(full))


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_dropout_is_that_of_hf_peft(name):
  """y = x W + b + (g - 1) (d W) + g s (d A) B for one and the same dropped d."""
  method = DoRA(rank=2, alpha=3.0, sites="layer", dropout=0.5)
  tuned, variables, x = layers.attach(method, *layers.LAYERS[name])
  y = tuned.apply(variables, x, rngs={"tuning": jax.random.key(0)})
  quiet = tuned.apply(variables, x)
  assert float(jnp.max(jnp.abs(y - quiet))) > 0.1
  w, bias, a, b, m = matrices(variables, tuned.table["layer"].fan_in)
  gain = m / np.linalg.norm(w + SCALE * a @ b, axis=0)
  site = tuned.table["layer"]
  params = variables["params"]["layer"]
  seen = []

  def layer(params, x):
    seen.append(x)
    return site.module.apply({"params": params}, x)

  got = method.call(site, variables["dora"]["layer"], params, layer, x, jax.random.key(9))
  dropped = np.asarray(seen[1])
  kept = dropped != 0
  np.testing.assert_allclose(dropped[kept], 2 * np.asarray(x)[kept], rtol=1e-6)
  assert 0.2 < kept.mean() < 0.8
  linear = lambda kernel, x: np.asarray(site.module.apply(  # noqa: E731
    {"params": {"kernel": jnp.asarray(kernel.reshape(params["kernel"].shape), jnp.float32),
                "bias": jnp.zeros_like(params["bias"])}}, x), np.float64)
  expected = (linear(w, x) + bias + (gain - 1) * linear(w, dropped)
              + gain * SCALE * linear(a @ b, dropped))
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("below", [LoRA(rank=1, sites="layer"), SSF(sites="layer")])
def test_the_norm_is_of_the_kernel_as_the_methods_below_left_it(below):
  make, shape, inputs = layers.LAYERS["dense"]
  tuned, variables, x = layers.attach(METHOD, make, shape, inputs)
  both = Tuned(tuned.model, (below, METHOD), tuned.table)
  variables = {**variables, below.collection: layers.perturbed(
    both.init(jax.random.key(2), variables["params"]), 3)[below.collection]}
  y = both.apply(variables, x)
  alone = tuned.apply(variables, x)
  assert float(jnp.max(jnp.abs(y - alone))) > 0.1
  merged = tuned.model.apply({"params": both.merge(variables)}, x)
  np.testing.assert_allclose(y, merged, rtol=1e-5, atol=1e-5)


def test_a_feature_without_weights_stays_so():
  tuned, variables, x = layers.attach(METHOD, *layers.LAYERS["dense"])
  kernel = variables["params"]["layer"]["kernel"]
  variables["params"]["layer"]["kernel"] = kernel.at[:, 0].set(0)
  start = {**variables, **tuned.init(jax.random.key(3), variables["params"])}
  train, frozen = headless(tuned).split(start)
  gradients = jax.grad(lambda own: jnp.sum(tuned.apply(join(own, frozen), x)))(train)
  assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradients))
  np.testing.assert_array_equal(
    tuned.apply(start, x), tuned.model.apply({"params": variables["params"]}, x))


@pytest.mark.parametrize("method, count", [
  (DoRA(rank=8), 1_339_392 + 83_712),
  (DoRA(rank=8, sites=".*/attn/(q|k|v)", share=("q", "k", "v")), 294_912 + 12 * 3 * 768),
])
def test_counts_on_vit_b16(method, count):
  assert sum(layers.trained(method).values()) == count


def test_the_kernels_must_be_known():
  tuned, _, _ = layers.attach(METHOD, *layers.LAYERS["dense"])
  with pytest.raises(ValueError, match=r"DoRA: the magnitude at layer .* tuned\.init\(key, params"):
    tuned.init(jax.random.key(0))


def test_a_wrong_option_names_this_method():
  with pytest.raises(ValueError, match="DoRA: rank=0"):
    DoRA(rank=0)


def test_a_staged_backbone_merges():
  model = models.ConvNeXt(3, (4, 6), (1, 2), image_size=16, layer_scale=0.5, loop="remat")
  x = jax.random.normal(jax.random.key(0), (2, model.image_size, model.image_size, 3))
  params = layers.drawn(models.parameters(model), 0)
  tuned = Tuned(model, (DoRA(rank=2),), sites(model, x))
  start = {"params": params, **tuned.init(jax.random.key(1), params)}
  variables = {"params": params, "dora": layers.perturbed(start["dora"], 2)}
  y, base = tuned.apply(variables, x), model.apply({"params": params}, x)
  assert float(jnp.max(jnp.abs(y - base))) > 0.02 * float(jnp.max(jnp.abs(base)))
  merged = model.apply({"params": tuned.merge(variables)}, x)
  np.testing.assert_allclose(y, merged, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(y))))
  assert any(path.endswith("fc2/magnitude") for path in flat(variables["dora"]))


def test_one_a_under_share():
  method = DoRA(rank=2, sites=".*/attn/(q|k|v)", share=("q", "k", "v"))
  names = {p.rpartition("encoder/blocks_3/attn/")[2] for p in layers.trained(method)
           if "/blocks_3/" in p}
  assert names == {"q/a", *(f"{n}/{leaf}" for n in "qkv" for leaf in ("b", "magnitude"))}


def test_a_layer_without_a_bias():
  def make(name):
    return nn.Dense(5, use_bias=False, name=name)

  layers.assert_forms_agree(METHOD, (make, (2, 3, 6), 6))
