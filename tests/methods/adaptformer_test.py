"""AdaptFormer: formula, position before the norm, counts, start, dropout, options."""

import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax.methods import AdaptFormer
from peft_jax.models.convnext import Stage
from peft_jax.models.layers import Numerics
from peft_jax.models.vit import Attention, Block, BlockSpec
from peft_jax.sites import sites
from peft_jax.tree import flat
from peft_jax.tuned import Tuned

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)


def beside(v, x):
  """The bottleneck of tokens x [T, inputs] in float64."""
  v = {name: np.asarray(leaf, np.float64) for name, leaf in v.items()}
  hidden = np.maximum(np.asarray(x, np.float64) @ v["down"] + v["down_bias"][None], 0)
  return hidden @ v["up"] + v["up_bias"][None]


def block():
  """(tuned block, its variables, a stream x [2, 5, 6]), random and far from a normed stream."""
  model = Block(BlockSpec(heads=2, hidden=8, layer_scale=0.5, eps=1e-6))
  x = jnp.asarray(2 + 3 * np.random.default_rng(0).standard_normal((2, 5, 6), np.float32))
  params = layers.drawn(jax.eval_shape(model.init, jax.random.key(0), x)["params"], 1)
  tuned = Tuned(model, (AdaptFormer(width=3, scale=0.7),), sites(model, x), head="")
  own = layers.perturbed(tuned.init(jax.random.key(1)), 2)
  return tuned, {"params": params, **own}, x


def numpy_block(params, v, x, scale):
  """x + attn(x), then x + mlp(x) + scale * bottleneck(x), all but the attention in NumPy."""
  attn = Attention(BlockSpec(heads=2, hidden=8, layer_scale=0.5, eps=1e-6))
  x = x + attn.apply({"params": params["attn"]}, x)
  x = np.asarray(x, np.float64).reshape(-1, 6)
  p = {path: np.asarray(leaf, np.float64) for path, leaf in flat(params["mlp"]).items()}
  normed = (x - x.mean(axis=1)[:, None]) / np.sqrt(x.var(axis=1) + 1e-6)[:, None]
  normed = normed * p["norm/scale"][None] + p["norm/bias"][None]
  hidden = normed @ p["fc1/kernel"] + p["fc1/bias"][None]
  hidden = hidden * (1 + np.vectorize(math.erf)(hidden / 2**0.5)) / 2
  mlp = (hidden @ p["fc2/kernel"] + p["fc2/bias"][None]) * p["ls"][None]
  return (x + mlp + scale * beside(v, x)).reshape(2, 5, 6)


def test_the_bottleneck_reads_the_stream_before_the_norm_of_the_mlp():
  tuned, variables, x = block()
  v = variables["adaptformer"]["mlp"]
  base = tuned.model.apply({"params": variables["params"]}, x)
  np.testing.assert_allclose(
    base, numpy_block(variables["params"], v, x, 0.0), rtol=1e-5, atol=1e-4)
  want = numpy_block(variables["params"], v, x, 0.7)
  assert np.max(np.abs(want - base)) > 1
  np.testing.assert_allclose(tuned.apply(variables, x), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["dense", "split_heads", "join_heads", "conv", "grouped"])
def test_the_formula_beside_a_layer(name):
  tuned, variables, x = layers.attach(AdaptFormer(width=3, sites="layer"), *layers.LAYERS[name])
  y = tuned.model.apply({"params": variables["params"]}, x)
  read = x.reshape(-1, layers.LAYERS[name][2])
  more = 0.1 * beside(variables["adaptformer"]["layer"], read).reshape(y.shape)
  assert np.max(np.abs(more)) > 0.03
  np.testing.assert_allclose(tuned.apply(variables, x), y + more, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width, name, count", [
  (64, "vit_base_patch16_224", 1_189_632),
  (16, "vit_base_patch16_224", 304_320),
  # 129 (2 * 128 + 2 * 256 + 18 * 512 + 2 * 1024) + 24 * 64
  pytest.param(64, "swin_base_patch4_window7_224", 1_553_664, marks=pytest.mark.slow),
  # 129 (3 * 128 + 3 * 256 + 27 * 512 + 3 * 1024) + 36 * 64
  pytest.param(64, "convnext_base", 2_330_496, marks=pytest.mark.slow),
])
def test_counts(width, name, count):
  sizes = layers.trained(AdaptFormer(width=width), name)
  assert all(path.startswith("adaptformer/") for path in sizes)
  assert sum(sizes.values()) == count


def test_beside_a_convnexts_block_it_reads_the_stream_before_the_depthwise_convolution():
  model = Stage(Numerics(eps=1e-6, layer_scale=0.5), 4, False, False, "python")
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 3, 4), np.float32))
  params = layers.drawn(jax.eval_shape(model.init, jax.random.key(0), x, [None])["params"], 1)
  tuned = Tuned(model, (AdaptFormer(width=3),), sites(model, x, [None]), head="")
  variables = {"params": params, **layers.perturbed(tuned.init(jax.random.key(1)), 2)}
  more = beside(variables["adaptformer"]["blocks_0"], x.reshape(-1, 4)).reshape(x.shape)
  assert np.max(np.abs(more)) > 0.3
  base = model.apply({"params": params}, x, [None])
  want = np.asarray(base, np.float64) + 0.1 * more
  np.testing.assert_allclose(tuned.apply(variables, x, [None]), want, rtol=1e-5, atol=1e-5)


def test_initial_values_are_those_of_the_release():
  method = AdaptFormer(width=50, sites="layer")
  tuned, _, _ = layers.attach(method, lambda name: layers.nn.Dense(60, name=name), (1, 100), 1)
  made = tuned.init(jax.random.key(0))["adaptformer"]["layer"]
  assert made["down"].shape == (100, 50) and made["up"].shape == (50, 60)
  bound = 0.1  # 1 / sqrt(100), what kaiming-uniform with a = sqrt(5) comes to
  assert 0.098 < float(jnp.max(jnp.abs(made["down"]))) <= bound
  assert abs(float(jnp.std(made["down"])) - bound / 3**0.5) < 0.002
  assert not any(jnp.any(made[name]) for name in ("up", "down_bias", "up_bias"))


def test_dropout_is_on_by_default_and_drops_nothing_without_a_key():
  tuned, variables, x = layers.attach(
    AdaptFormer(width=3, sites="layer"), *layers.LAYERS["dense"])
  off, _, _ = layers.attach(
    AdaptFormer(width=3, sites="layer", dropout=0.0), *layers.LAYERS["dense"])
  draw = lambda key: tuned.apply(variables, x, rngs={"tuning": key})  # noqa: E731
  quiet = tuned.apply(variables, x)
  np.testing.assert_array_equal(quiet, off.apply(variables, x))
  np.testing.assert_array_equal(quiet, off.apply(variables, x, rngs={"tuning": jax.random.key(0)}))
  np.testing.assert_array_equal(draw(jax.random.key(1)), draw(jax.random.key(1)))
  draws = jax.vmap(draw)(jax.random.split(jax.random.key(2), 4000))
  assert float(jnp.max(jnp.abs(draws - quiet[None]))) > 0.01
  error = jnp.std(draws, axis=0) / 4000**0.5
  assert float(jnp.max(jnp.abs(jnp.mean(draws, axis=0) - quiet) / (error + 1e-6))) < 5


@pytest.mark.parametrize("options, sentence", [
  ({"width": 0}, "AdaptFormer: width=0; it must be at least 1"),
  ({"dropout": -0.1}, r"AdaptFormer: dropout=-0.1; it must lie in \[0, 1\)"),
])
def test_invalid_options(options, sentence):
  with pytest.raises(ValueError, match=sentence):
    AdaptFormer(**options)


def test_a_layer_that_does_not_go_from_token_to_token_is_refused():
  make, shape, inputs = layers.LAYERS["strided"]
  with pytest.raises(ValueError, match=r"AdaptFormer: layer turns \(2, 7, 7, 6\) into .* by token"):
    layers.attach(AdaptFormer(sites="layer"), make, shape, inputs)
