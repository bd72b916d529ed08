"""Adapter: formula, counts, start, where it sits, dropout, options."""

import functools
import importlib.util
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models
from peft_jax.methods import Adapter
from peft_jax.sites import sites
from peft_jax.tree import flat
from peft_jax.tuned import Tuned

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

MATRICES = r".*/(attn/(q|k|v|proj)|mlp/fc[12])"
SWIN, CONVNEXT = "swin_base_patch4_window7_224", "convnext_base"

# In NumPy: the exact GELU through the error function of the standard library.
ACTS = {
  "quick_gelu": lambda h: h / (1 + np.exp(-1.702 * h)),
  "gelu": lambda h: h * (1 + np.vectorize(math.erf)(h / 2**0.5)) / 2,
  "relu": lambda h: np.maximum(h, 0),
}
# Layers whose input and output have the same tokens.
TOKENWISE = ("dense", "split_heads", "join_heads", "conv", "grouped")


def bottleneck(v, read, act):
  """The bottleneck of tokens [T, inputs] in float64."""
  v = {name: np.asarray(leaf, np.float64) for name, leaf in v.items()}
  hidden = ACTS[act](np.einsum("ti,ik->tk", read, v["down"]) + v["down_bias"][None])
  return np.einsum("tk,ko->to", hidden, v["up"]) + v["up_bias"][None]


def tokens(x, features):
  return np.asarray(x, np.float64).reshape(-1, features)


@pytest.mark.parametrize("name, act", [
  *((name, "quick_gelu") for name in layers.LAYERS), ("dense", "gelu"), ("dense", "relu")])
def test_the_formula_behind_a_layer(name, act):
  tuned, variables, x = layers.attach(
    Adapter(width=3, act=act, sites="layer"), *layers.LAYERS[name])
  y = tuned.model.apply({"params": variables["params"]}, x)
  channels = variables["adapter"]["layer"]["up"].shape[1]
  more = bottleneck(variables["adapter"]["layer"], tokens(y, channels), act).reshape(y.shape)
  assert np.max(np.abs(more)) > 0.1
  np.testing.assert_allclose(tuned.apply(variables, x), y + more, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TOKENWISE)
def test_the_formula_beside_a_layer(name):
  method = Adapter(width=3, sites="layer", parallel=("layer",))
  tuned, variables, x = layers.attach(method, *layers.LAYERS[name])
  y = tuned.model.apply({"params": variables["params"]}, x)
  inputs = layers.LAYERS[name][2]
  more = bottleneck(variables["adapter"]["layer"], tokens(x, inputs), "quick_gelu").reshape(y.shape)
  assert np.max(np.abs(more)) > 0.1
  np.testing.assert_allclose(tuned.apply(variables, x), y + more, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options, name, count", [
  ({}, "vit_base_patch16_224", 156_768),
  ({"width": 32}, "vit_base_patch16_224", 599_424),
  ({"reduction": 8}, "vit_base_patch16_224", 1_779_840),
  ({"reduction": 64}, "vit_base_patch16_224", 230_544),
  ({"reduction": 256}, "vit_base_patch16_224", 64_548),
  # 12 (4 * 13,064 + 52,232 + 13,064), the costs of SPT's allocation
  ({"sites": MATRICES, "parallel": ("proj",)}, "vit_base_patch16_224", 1_410_624),
  ({}, SWIN, 204_736),
  # 17 (3 * 128 + 3 * 256 + 27 * 512 + 3 * 1024) + 36 * 8
  ({}, CONVNEXT, 307_104),
])
def test_counts(options, name, count):
  sizes = layers.trained(Adapter(**options), name)
  assert all(path.startswith("adapter/") for path in sizes)
  assert sum(sizes.values()) == count


TINY = dict(num_classes=3, width=8, depth=2, heads=2, patch=8, image_size=16)


@pytest.mark.parametrize("model, places", [
  (models.ViT(**TINY), ["encoder/blocks_0/mlp", "encoder/blocks_1/mlp"]),
  (models.ViT(**TINY, loop="scan"), ["encoder/blocks/mlp"]),
  (models.Swin(3, width=8, depths=(1, 1), heads=(2, 2), window=3, image_size=16),
   ["stages_0/blocks_0/mlp", "stages_1/blocks_0/mlp"]),
  (models.ConvNeXt(3, (4, 6), (1, 1), image_size=16), ["stages_0/blocks_0", "stages_1/blocks_0"]),
], ids=["vit", "scan", "swin", "convnext"])
def test_of_nested_modules_the_innermost_is_adapted(model, places):
  table = sites(model, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))
  adapted = lambda **where: sorted({path.rpartition("/")[0] for path in flat(  # noqa: E731
    Tuned(model, (Adapter(**where),), table).shapes["adapter"])})
  assert adapted() == places
  named = (places[0], places[0].rpartition("/")[0])
  assert adapted(sites=named) == sorted(named)  # what is named one by one counts in any case


def start(initial):
  """The initial values at a layer of 100 channels."""
  method = Adapter(width=50, sites="layer", initial=initial)
  tuned, _, _ = layers.attach(method, functools.partial(nn.Dense, 100), (1, 80), 1)
  return tuned.init(jax.random.key(0))["adapter"]["layer"]


def test_initial_values():
  zero_up, normal, zero = (start(name) for name in ("zero_up", "trunc_normal_both", "vpt_zero"))
  bound = (6 / (100 + 50)) ** 0.5
  assert 0.98 * bound < float(jnp.max(jnp.abs(zero_up["down"]))) <= bound
  assert abs(float(jnp.std(zero_up["down"])) - bound / 3**0.5) < 0.005
  assert not jnp.any(zero_up["up"])
  for name, shape in (("down", (100, 50)), ("up", (50, 100))):
    assert normal[name].shape == zero[name].shape == zero_up[name].shape == shape
    assert abs(float(jnp.std(normal[name])) - 0.02) < 0.001
    assert float(jnp.max(jnp.abs(normal[name]))) > 0.05  # not cut at two standard deviations
    assert not jnp.any(zero[name])
  assert not np.array_equal(normal["down"], normal["up"].T)
  for made in (zero_up, normal, zero):
    assert not jnp.any(made["down_bias"]) and not jnp.any(made["up_bias"])


@pytest.mark.parametrize("initial, learning", [
  ("zero_up", {"up", "up_bias"}),
  ("trunc_normal_both", {"down", "down_bias", "up", "up_bias"}),
  ("vpt_zero", {"up_bias"}),
])
def test_what_learns_in_the_first_step_and_in_the_second(initial, learning):
  """VPT's start never leaves the set that its first step has; the usual one does."""
  method = Adapter(width=3, sites="layer", initial=initial, act="gelu")
  tuned, variables, x = layers.attach(method, *layers.LAYERS["dense"])
  own = tuned.init(jax.random.key(3))

  def loss(own):
    return jnp.sum(jnp.square(tuned.apply({"params": variables["params"], **own}, x)))

  gradients = jax.grad(loss)(own)
  assert moving(gradients) == learning
  own = jax.tree.map(lambda leaf, g: leaf - 0.01 * g, own, gradients)
  everything = {"down", "down_bias", "up", "up_bias"}
  assert moving(jax.grad(loss)(own)) == ({"up_bias"} if initial == "vpt_zero" else everything)


def moving(gradients):
  return {name for name, g in gradients["adapter"]["layer"].items() if bool(jnp.any(g != 0))}


def test_dropout_drops_hidden_units_and_keeps_the_mean():
  method = Adapter(width=3, sites="layer", dropout=0.5)
  tuned, variables, x = layers.attach(method, *layers.LAYERS["dense"])
  plain, _, _ = layers.attach(Adapter(width=3, sites="layer"), *layers.LAYERS["dense"])
  quiet = tuned.apply(variables, x)
  np.testing.assert_array_equal(quiet, plain.apply(variables, x))
  draw = lambda key: tuned.apply(variables, x, rngs={"tuning": key})  # noqa: E731
  np.testing.assert_array_equal(draw(jax.random.key(1)), draw(jax.random.key(1)))
  # Of one token the draws are the 2^3 sums over hidden units kept and doubled, and no others.
  v = {name: np.asarray(leaf, np.float64) for name, leaf in variables["adapter"]["layer"].items()}
  y = np.asarray(tuned.model.apply({"params": variables["params"]}, x), np.float64)
  hidden = ACTS["quick_gelu"](y[0, 0] @ v["down"] + v["down_bias"])
  masks = np.array(list(np.ndindex(2, 2, 2)), np.float64)
  sums = y[0, 0] + (2 * masks * hidden) @ v["up"] + v["up_bias"]
  draws = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(2), 200)))
  near = np.abs(draws[:, None, 0, 0] - sums[None]).max(axis=-1)
  assert near.min(axis=1).max() < 1e-4 and set(near.argmin(axis=1)) == set(range(8))


@pytest.mark.parametrize("options, sentence", [
  ({"width": 0}, "Adapter: width=0; it must be at least 1"),
  ({"reduction": -1}, "Adapter: reduction=-1; it must be at least 0"),
  ({"act": "silu"}, "Adapter: act='silu'; it must be one of quick_gelu, gelu, relu"),
  ({"initial": "zeros"}, "initial='zeros'; it must be one of zero_up, trunc_normal_both, vpt_zero"),
  ({"dropout": 1.0}, r"Adapter: dropout=1.0; it must lie in \[0, 1\)"),
])
def test_invalid_options(options, sentence):
  with pytest.raises(ValueError, match=sentence):
    Adapter(**options)


class Pair(nn.Module):
  """Returns two arrays."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(4, name="fc")(x), x


class Mixed(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (2, 2), strides=2, name="stem")(x)
    return Pair(name="pair")(x)[0]


@pytest.mark.parametrize("options, sentence", [
  ({"sites": "pair"}, r"Adapter: pair \(Pair\) does not return one array \[..., channels\]"),
  ({"sites": "stem", "parallel": ("stem",)},
   r"Adapter: stem turns \(1, 8, 8, 3\) into \(1, 4, 4, 4\), so what is read at its input"),
  ({"sites": "stem", "parallel": ("proj",)}, "parallel names 'proj', but no adapter sits at such"),
  ({"sites": "stem", "reduction": 5}, "reduction=5 leaves nothing of the 4 channels of stem"),
])
def test_options_that_do_not_fit_the_model(options, sentence):
  table = sites(Mixed(), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
  with pytest.raises(ValueError, match=sentence):
    Tuned(Mixed(), (Adapter(**options),), table, head="")


def test_a_module_that_returns_two_arrays_may_hold_what_is_adapted():
  table = sites(Mixed(), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
  shapes = Tuned(Mixed(), (Adapter(sites="pair.*"),), table, head="").shapes["adapter"]
  assert set(shapes["pair"]) == {"fc"}
