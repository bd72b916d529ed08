"""SSF: golden values, forms, counts, start."""

import importlib.util
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax.methods import SSF
from peft_jax.sites import Site, sites
from peft_jax.tuned import Tuned

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

LAYERS = layers.LAYERS | layers.NORMS


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_forms_agree(layer):
  layers.assert_forms_agree(SSF(sites="layer"), layer)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_start_is_near_the_backbone_and_not_equal(layer):
  tuned, variables, x = layers.attach(SSF(sites="layer"), *layer)
  variables |= tuned.init(jax.random.key(3))
  base = tuned.model.apply({"params": variables["params"]}, x)
  difference = jnp.max(jnp.abs(tuned.apply(variables, x) - base))
  assert 1e-3 < float(difference) < 0.3 * float(1 + jnp.max(jnp.abs(base)))


def test_golden_linear():
  """W = [[1, -1], [2, 0.5]] (out, in), b = [0.5, -1], scale [2, -0.5], shift [1, 1], x = [2, 1]."""
  tuned, variables, _ = layers.attach(SSF(sites="layer"), lambda name: nn.Dense(2, name=name),
                                      (1, 2), 1)
  variables["params"]["layer"] = layers.tree(kernel=[[1, 2], [-1, 0.5]], bias=[0.5, -1])
  variables["ssf"] = layers.tree(layer__scale=[2, -0.5], layer__shift=[1, 1])
  np.testing.assert_array_equal(tuned.apply(variables, jnp.asarray([[2.0, 1.0]])), [[4, -0.75]])
  merged = tuned.merge(variables)["layer"]
  np.testing.assert_array_equal(merged["kernel"].T, [[2, -2], [-1, -0.25]])
  np.testing.assert_array_equal(merged["bias"], [2, 1.5])


def test_golden_norm():
  site = Site("norm", nn.LayerNorm, (), (), (1, 2), (1, 2), (), (2,))
  affine = layers.tree(scale=[2, 1], bias=[0, 1])
  new = SSF().weights(site, affine, layers.tree(scale=[0.5, 3], shift=[1, -1]))
  np.testing.assert_array_equal(new["scale"], [1, 3])
  np.testing.assert_array_equal(new["bias"], [1, 2])


def test_counts_on_vit_b16():
  sizes = layers.trained(SSF())
  assert sum(sizes.values()) == 205_824
  assert sum(sizes.values()) + 76_900 == 282_724
  # 74 pairs with a fused qkv: here q, k and v are three.
  assert len(sizes) / 2 == 74 + 2 * 12
  assert sum(size for path, size in sizes.items() if "/blocks_5/" in path) == 2 * 11 * 768


def test_initial_values():
  class Wide(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(20_000, name="fc")(x)

  x = jnp.ones((1, 1))
  made = Tuned(Wide(), (SSF(),), sites(Wide(), x)).init(jax.random.key(0))["ssf"]["fc"]
  for name, mean in (("scale", 1.0), ("shift", 0.0)):
    assert made[name].shape == (20_000,)
    assert abs(float(jnp.mean(made[name])) - mean) < 1e-3
    assert abs(float(jnp.std(made[name])) - 0.02) < 1e-3
  assert abs(float(jnp.corrcoef(made["scale"], made["shift"])[0, 1])) < 0.03


def test_channels_are_the_last_axis_even_where_width_equals_channels():
  """The official code guesses the axis; here an image 6 pixels wide has 6 channels."""
  tuned, variables, _ = layers.attach(SSF(sites="layer"), *LAYERS["depthwise"])
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 6, 6), np.float32))
  base = tuned.model.apply({"params": variables["params"]}, x)
  v = variables["ssf"]["layer"]
  expected = np.asarray(base) * np.asarray(v["scale"]) + np.asarray(v["shift"])
  np.testing.assert_allclose(tuned.apply(variables, x), expected, rtol=1e-6, atol=1e-6)


def test_a_norm_without_a_bias_applies_but_does_not_merge():
  tuned, variables, x = layers.attach(SSF(sites="layer"), nn.RMSNorm, (2, 3, 6), 6)
  assert float(jnp.max(jnp.abs(
    tuned.apply(variables, x) - tuned.model.apply({"params": variables["params"]}, x)
  ))) > 1e-2
  with pytest.raises(ValueError, match="SSF would change 'bias' of layer from nothing"):
    tuned.merge(variables)
