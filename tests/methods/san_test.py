"""SAN: golden values of single layers, the wiring, counts of every variant, dependencies."""

import importlib.util
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models
from peft_jax.methods import SAN, Wire
from peft_jax.sites import sites
from peft_jax.tree import flat
from peft_jax.tuned import Tuned

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

FED = (Wire("layer", ("before",)),)


def feed(make, inputs, method, params, values, x):
  """(output, merged layer) of a layer whose input scale comes from the site `before`.

  params: the layer's own; values: flat san variables, those of `before` included.
  """
  x = jnp.asarray(x, jnp.float32)
  model = layers.One(make, inputs)
  tuned = Tuned(model, (method,), sites(model, x))
  shapes = flat(jax.eval_shape(tuned.init, jax.random.key(0))["san"])
  before = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0), x)["params"]["before"])
  variables = {
    "params": {"before": before, "layer": layers.tree(**params)},
    "san": layers.tree(**{p.replace("/", "__"): values[p] for p in shapes}),
  }
  merged = tuned.merge(variables)
  y = tuned.apply(variables, x)
  np.testing.assert_allclose(model.apply({"params": merged}, x), y, rtol=1e-6, atol=1e-6)
  return np.asarray(y), merged["layer"]


# One linear layer. Matrices are written (out, in) and transposed.


@pytest.mark.parametrize(
  "mode, expected", [("both", [0, 0, -3.5]), ("nt", [0, -1, 0.5]), ("sp", [0, 0, 3.5])]
)
def test_golden_linear(mode, expected):
  params = {"kernel": np.array([[1, 2], [3, 4], [5, 6]]).T, "bias": [1, -1, 0.5]}
  values = {"before/scale": [1.5, 0.5], "layer/recal": [2, 4], "layer/scale": [2, 0.5, -1]}
  make = lambda name: nn.Dense(3, name=name)  # noqa: E731
  y, merged = feed(make, 2, SAN(mode=mode, wiring=FED), params, values, [[1, -1]])
  np.testing.assert_array_equal(y, [expected])
  if mode == "both":
    np.testing.assert_array_equal(merged["kernel"].T, [[6, 8], [4.5, 4], [-15, -12]])
    np.testing.assert_array_equal(merged["bias"], [2, -0.5, -0.5])


class Two(nn.Module):
  hidden: int = 2
  out: int = 3
  relu: bool = True

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.hidden, name="fc1")(x)
    return nn.Dense(self.out, name="fc2")(nn.relu(x) if self.relu else x)


def two(model, method, params, values, x):
  x = jnp.asarray(x, jnp.float32)
  tuned = Tuned(model, (method,), sites(model, x))
  shapes = flat(jax.eval_shape(tuned.init, jax.random.key(0))["san"])
  san = layers.tree(**{p.replace("/", "__"): values[p] for p in shapes})
  return tuned, {"params": layers.tree(**params), "san": san}, x


GOLDEN_TWO = {
  "fc1__kernel": np.array([[1, -1], [2, 0.5]]).T,
  "fc1__bias": [0.5, -1],
  "fc2__kernel": np.array([[1, 2], [0, -1], [3, 1]]).T,
  "fc2__bias": [1, 0, -2],
}
VALUES_TWO = {"fc1/scale": [2, -0.5], "fc2/scale": [0.5, 2, 1], "fc2/recal": [1, 3]}
CHAIN = (Wire("fc2", ("fc1",)),)


@pytest.mark.parametrize(
  "mode, expected", [("both", [3.5, 0, 16]), ("nt", [2, 0, 7]), ("sp", [-6.5, 5.25, 1.75])]
)
def test_golden_two_layers(mode, expected):
  method = SAN(mode=mode, wiring=CHAIN, reg_lambda=1.0)
  tuned, variables, x = two(Two(), method, GOLDEN_TWO, VALUES_TWO, [[2, 1]])
  np.testing.assert_array_equal(tuned.apply(variables, x), [expected])
  merged = tuned.merge(variables)
  np.testing.assert_array_equal(tuned.model.apply({"params": merged}, x), [expected])
  if mode == "both":
    np.testing.assert_array_equal(merged["fc1"]["kernel"].T, [[2, -2], [-1, -0.25]])
    np.testing.assert_array_equal(merged["fc1"]["bias"], [1, 0.5])
    np.testing.assert_array_equal(merged["fc2"]["kernel"].T, [[1, -1.5], [0, 3], [6, -1.5]])
    np.testing.assert_array_equal(merged["fc2"]["bias"], [0.5, 0, -2])
    # (1 + 2.25) + (0.25 + 1 + 0): the recalibration is not in the penalty.
    np.testing.assert_array_equal(tuned.penalty(variables), 4.5)


def test_equation_7_squares_the_first_scale():
  """gamma2 gamma1^2 w x + gamma2 b = 0.5 * 2.25 * 2 * 3 + 0.5 = 7.25."""
  params = {"fc1__kernel": [[1]], "fc1__bias": [0], "fc2__kernel": [[2]], "fc2__bias": [1]}
  values = {"fc1/scale": [1.5], "fc2/scale": [0.5]}
  method = SAN(wiring=CHAIN, recal="none")
  tuned, variables, x = two(Two(1, 1, relu=False), method, params, values, [[3]])
  np.testing.assert_array_equal(tuned.apply(variables, x), [[7.25]])


def test_equations_5_and_12_add_a_shift_and_a_bias():
  """Source 2 * 3 + 1 = 7; y = 0.5 * (7 * 4 * x + 6) + 0.25 at x = 1, before of scale 2."""
  params = {"kernel": [[4]], "bias": [6]}
  values = {
    "before/scale": [2], "before/shift": [9], "layer/scale": [0.5], "layer/shift": [0.25],
    "layer/recal": [3], "layer/recal_bias": [1],
  }
  make = lambda name: nn.Dense(1, name=name)  # noqa: E731
  y, merged = feed(make, 1, SAN(variant="paper", wiring=FED), params, values, [[1]])
  np.testing.assert_array_equal(y, [[17.25]])
  np.testing.assert_array_equal((merged["kernel"][0, 0], merged["bias"][0]), (14, 3.25))


# Sources of another width.


@pytest.mark.parametrize(
  "size, expected",
  [
    (2, [1, 32]),
    (3, [1, 6, 32]),
    (4, [1, 10 / 3, 32 / 3, 32]),
    (6, [1, 2, 4, 8, 16, 32]),
    (12, [1, 2, 4, 8, 16, 32] * 2),
    (1, [1]),
  ],
)
def test_interpolation_keeps_the_corners_and_copies_are_tiled(size, expected):
  params = {
    "fc1__kernel": np.ones((1, 6)), "fc1__bias": np.zeros(6),
    "fc2__kernel": np.ones((size, 1)), "fc2__bias": [0],
  }
  values = {"fc1/scale": [1, 2, 4, 8, 16, 32], "fc2/scale": [1]}

  class Resized(nn.Module):
    @nn.compact
    def __call__(self, x):
      nn.Dense(6, name="fc1")(x)
      return nn.Dense(1, name="fc2")(jnp.ones((1, size)))

  tuned, variables, x = two(Resized(), SAN(wiring=CHAIN, recal="none"), params, values, [[1]])
  source = tuned.derived(variables)["san"]["fc2/source"]
  np.testing.assert_allclose(source, expected, rtol=1e-6)
  np.testing.assert_allclose(tuned.merge(variables)["fc2"]["kernel"][:, 0], expected, rtol=1e-6)
  np.testing.assert_allclose(tuned.apply(variables, x), [[sum(expected)]], rtol=1e-6)


def test_golden_patch_merging():
  """Four copies of one channel: the scale of the last fc2 is tiled."""
  params = {"kernel": np.array([[1, 1, 1, 1], [1, 0, -1, 0]]).T}
  values = {"before/scale": [3], "layer/scale": [1, 2], "layer/recal": [1, 2, 1, 0.5]}

  class Merging(nn.Module):
    @nn.compact
    def __call__(self, x):
      nn.Dense(1, name="before")(jnp.ones((1, 1)))
      return nn.Dense(2, use_bias=False, name="layer")(x)

  x = jnp.asarray([[1.0, 2.0, 3.0, 4.0]])
  tuned = Tuned(Merging(), (SAN(wiring=FED),), sites(Merging(), x))
  before = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}
  san = layers.tree(**{p.replace("/", "__"): v for p, v in values.items()})
  variables = {"params": {"before": before, "layer": layers.tree(**params)}, "san": san}
  np.testing.assert_array_equal(tuned.apply(variables, x), [[30, -12]])
  np.testing.assert_array_equal(
    Merging().apply({"params": tuned.merge(variables)}, x), [[30, -12]]
  )


# Convolutions.


def convolution(features, groups):
  return lambda name: nn.Conv(features, (1, 1), feature_group_count=groups, name=name)


def test_golden_depthwise():
  params = {"kernel": np.reshape([2, -1], (1, 1, 1, 2)), "bias": [1, 1]}
  values = {"before/scale": [3, 0.5], "layer/scale": [2, 4]}
  method = SAN(wiring=FED, recal="none")
  y, merged = feed(convolution(2, 2), 2, method, params, values, [[[[1, 2]]]])
  np.testing.assert_array_equal(y, [[[[14, 0]]]])
  np.testing.assert_array_equal(merged["kernel"][0, 0, 0], [12, -2])
  np.testing.assert_array_equal(merged["bias"], [2, 4])


def test_golden_channel_multiplier():
  """Two outputs per channel: output o reads channel o // 2, the recalibration has length C."""
  params = {"kernel": np.reshape([2, 1, -1, 3], (1, 1, 1, 4)), "bias": [1, 0, 1, 0]}
  values = {"before/scale": [3, 0.5], "layer/recal": [1, 2], "layer/scale": [2, 1, 4, 0.5]}
  y, merged = feed(convolution(4, 2), 2, SAN(wiring=FED), params, values, [[[[1, 2]]]])
  # s = [3, 1]: 2 (6 + 1), 1 * 3, 4 (-2 + 1), 0.5 * 6
  np.testing.assert_array_equal(y, [[[[14, 3, -4, 3]]]])
  np.testing.assert_array_equal(merged["kernel"][0, 0, 0], [12, 3, -4, 1.5])


def test_golden_grouped():
  """Group g of the outputs reads channels 2 g and 2 g + 1."""
  params = {"kernel": np.reshape([[1, 2, 3, 4], [5, 6, 7, 8]], (1, 1, 2, 4)), "bias": [0] * 4}
  values = {"before/scale": [1, 10, 100, 1000], "layer/scale": [1, 2, 1, 2]}
  method = SAN(wiring=FED, recal="none")
  y, merged = feed(convolution(4, 2), 4, method, params, values, [[[[1, 1, 1, 1]]]])
  np.testing.assert_array_equal(
    merged["kernel"][0, 0], [[1, 4, 300, 800], [50, 120, 7000, 16000]]
  )
  np.testing.assert_array_equal(y, [[[[51, 124, 7300, 16800]]]])


METHODS = {
  "fed": SAN(wiring=FED),
  "fed_bias_shift": SAN(wiring=FED, recal="diag_bias", shift=True),
  "nt": SAN(mode="nt", sites="layer"),
}


@pytest.mark.parametrize("layer", layers.LAYERS.values(), ids=layers.LAYERS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_forms_agree(method, layer):
  layers.assert_forms_agree(method, layer)


@pytest.mark.parametrize("layer", layers.LAYERS.values(), ids=layers.LAYERS)
def test_the_start_is_the_backbone_bit_for_bit(layer):
  tuned, variables, x = layers.attach(SAN(variant="paper", wiring=FED), *layer)
  variables |= tuned.init(jax.random.key(0))
  base = tuned.model.apply({"params": variables["params"]}, x)
  np.testing.assert_array_equal(tuned.apply(variables, x), base)


# ViT: counts.


NORMS = 38_400
COUNTS = {
  # method: (scale, recal) of ViT-B/16
  "resize": (SAN(), 83_712, 64_512),
  "base": (SAN(variant="base"), 83_712, 0),
  "base_recal": (SAN(variant="base_recal"), 83_712, 55_296),
  "nt": (SAN(mode="nt"), 83_712, 0),
  "base_nt": (SAN(variant="base", mode="nt"), 83_712, 0),
  "sp": (SAN(mode="sp"), 74_496, 64_512),
  "base_sp": (SAN(variant="base", mode="sp"), 46_848, 0),
  "prev_fc2": (SAN(qkv_source="prev_fc2"), 83_712, 64_512),
  "v_slice": (SAN(proj_source="v_slice"), 83_712, 64_512),
  "no_proj": (SAN(proj_source="none"), 83_712, 55_296),
  "no_recal": (SAN(recal="none"), 83_712, 0),
}
TOTALS = {
  "resize": 186_624, "base": 122_112, "base_recal": 177_408, "nt": 122_112, "sp": 177_408,
  "base_sp": 85_248,
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_on_vit_b16(name):
  method, scale, recal = COUNTS[name]
  sizes = layers.trained(method)
  found = {
    leaf: sum(n for path, n in sizes.items() if path.startswith("san/") and path.endswith(leaf))
    for leaf in ("/scale", "/recal")
  }
  assert found == {"/scale": scale, "/recal": recal}
  assert sum(sizes.values()) == TOTALS.get(name, scale + recal + NORMS)


def test_counts_of_the_equations_read_literally():
  sizes = layers.trained(SAN(variant="paper"))
  assert sum(sizes.values()) == 2 * 83_712 + 2 * 64_512 + NORMS
  assert sum(layers.trained(SAN(train_norm=False)).values()) == 186_624 - NORMS


# ViT: the wiring.

X = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)


def vit(loop="python"):
  model = models.ViT(
    num_classes=2, width=6, depth=3, heads=2, patch=2, image_size=4, layer_scale=0.5, loop=loop
  )
  return model, sites(model, X)


def changed_kernels(method, loop, path, index=...):
  """Kernels of the merged model that change when the variable `path` does."""
  model, table = vit(loop)
  tuned = Tuned(model, (method,), table)
  params = layers.drawn(jax.eval_shape(model.init, jax.random.key(0), X)["params"], 1)
  own = layers.drawn(jax.eval_shape(tuned.init, jax.random.key(1)), 2)
  before = flat(models.unstack_blocks(tuned.merge({"params": params, **own})))
  leaves = flat(own)
  leaves[path] = leaves[path].at[index].multiply(1.5)
  moved = {"params": params, **layers.nest(leaves)}
  after = flat(models.unstack_blocks(tuned.merge(moved)))
  return {
    p.removesuffix("/kernel")
    for p in before
    if p.endswith("kernel") and not np.array_equal(before[p], after[p])
  }


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_what_depends_on_what(loop):
  """The stem feeds every q, k and v; the last scale of a block feeds nothing."""
  at = "encoder/blocks_{}/{}".format
  block = "san/encoder/blocks{}/{}/scale".format
  one = lambda name: (  # noqa: E731
    (block("_1", name), ...) if loop == "python" else (block("", name), 1)
  )
  stem = {"patch_embed"} | {at(k, f"attn/{name}") for k in range(3) for name in "qkv"}
  assert changed_kernels(SAN(), loop, "san/patch_embed/scale") == stem
  assert changed_kernels(SAN(), loop, *one("mlp/fc2")) == {at(1, "mlp/fc2")}
  assert changed_kernels(SAN(), loop, *one("mlp/fc1")) == {at(1, "mlp/fc1"), at(1, "mlp/fc2")}
  assert changed_kernels(SAN(), loop, *one("attn/k")) == {at(1, "attn/k"), at(1, "attn/proj")}
  assert changed_kernels(SAN(variant="base"), loop, *one("attn/k")) == {at(1, "attn/k")}
  v_slice = SAN(proj_source="v_slice")
  assert changed_kernels(v_slice, loop, *one("attn/k")) == {at(1, "attn/k")}
  assert changed_kernels(v_slice, loop, *one("attn/v")) == {at(1, "attn/v"), at(1, "attn/proj")}
  previous = SAN(qkv_source="prev_fc2")
  assert changed_kernels(previous, loop, *one("mlp/fc2")) == {
    at(1, "mlp/fc2"), *(at(2, f"attn/{name}") for name in "qkv")
  }
  assert changed_kernels(previous, loop, "san/patch_embed/scale") == {
    "patch_embed", *(at(0, f"attn/{name}") for name in "qkv")
  }


def test_nothing_is_fed_from_a_site_that_is_not_selected():
  _, table = vit()
  tuned = Tuned(vit()[0], (SAN(sites=".*/mlp/.*"),), table)
  fed = {path for path in tuned.init(jax.random.key(0))["san"]["encoder"]["blocks_0"]["mlp"]["fc2"]}
  assert fed == {"scale", "recal"}
  assert {wire.site.rpartition("/")[2] for wire in tuned.bound[0][0].wiring} == {"fc2"}


# Options.


@pytest.mark.parametrize(
  "option", ["variant", "recal", "qkv_source", "proj_source", "mode"]
)
def test_an_unknown_option_is_an_error(option):
  with pytest.raises(ValueError, match=f"SAN: {option}='sideways'; it must be one of"):
    SAN(**{option: "sideways"})


def test_a_wire_to_nowhere_is_an_error():
  model, table = vit()
  with pytest.raises(ValueError, match="SAN: the wiring names 'stem', which `sites`"):
    Tuned(model, (SAN(wiring=(Wire("encoder/blocks_0/attn/q", ("stem",)),)),), table)


def test_the_penalty_is_zero_by_default():
  model, table = vit()
  tuned = Tuned(model, (SAN(),), table)
  made = layers.perturbed(tuned.init(jax.random.key(0)), 1)
  assert float(tuned.penalty(made)) == 0
