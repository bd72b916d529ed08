"""IA3: forms, formula, start, sites and counts."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models
from peft_jax.methods import IA3
from peft_jax.sites import sites
from peft_jax.tuned import Tuned

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

DENSE = {name: layers.LAYERS[name] for name in ("dense", "split_heads", "join_heads")}


@pytest.mark.parametrize("inputs", ["layer", "none"])
@pytest.mark.parametrize("layer", DENSE.values(), ids=DENSE)
def test_forms_agree(layer, inputs):
  layers.assert_forms_agree(IA3(sites="layer", inputs=inputs), layer)


def test_the_formula():
  """x = [1, -1], W = [[1, 2], [3, 4]], b = [1, 0], scale = [2, -1]."""
  for inputs, expected, bias in (
    ("layer", [[2 * 1 + 3 + 1, 2 * 2 + 4 + 0]], [1, 0]),  # (scale * x) W + b
    ("none", [[2 * (1 - 3 + 1), -(2 - 4 + 0)]], [2, 0]),  # scale * (x W + b)
  ):
    tuned, variables, _ = layers.attach(
      IA3(sites="layer", inputs=inputs), lambda name: layers.nn.Dense(2, name=name), (1, 2), 1
    )
    variables["params"]["layer"] = layers.tree(kernel=[[1, 2], [3, 4]], bias=[1, 0])
    variables["ia3"] = layers.tree(layer__scale=[2, -1])
    np.testing.assert_array_equal(tuned.apply(variables, jnp.asarray([[1.0, -1.0]])), expected)
    np.testing.assert_array_equal(tuned.merge(variables)["layer"]["bias"], bias)


@pytest.mark.parametrize("name, count", [
  ("vit_base_patch16_224", 12 * (768 + 768 + 3072)),
  ("swin_base_patch4_window7_224", 6 * sum(n * 128 * 2**s for s, n in enumerate((2, 2, 18, 2)))),
  ("convnext_base", 4 * sum(n * 128 * 2**s for s, n in enumerate((3, 3, 27, 3)))),
])
def test_counts(name, count):
  assert sum(layers.trained(IA3(), name).values()) == count


def test_what_is_scaled_on_a_vit():
  sizes = {p.removeprefix("ia3/encoder/blocks_7/"): n for p, n in layers.trained(IA3()).items()
           if "/blocks_7/" in p}
  assert sizes == {"attn/k/scale": 768, "attn/v/scale": 768, "mlp/fc2/scale": 3072}


def test_a_staged_backbone_starts_equal_and_merges():
  model = models.ConvNeXt(3, (4,), (1,), image_size=8, layer_scale=0.5, loop="remat")
  x = jax.random.normal(jax.random.key(0), (2, model.image_size, model.image_size, 3))
  params = layers.drawn(models.parameters(model), 0)
  tuned = Tuned(model, (IA3(),), sites(model, x))
  start = {"params": params, **tuned.init(jax.random.key(1), params)}
  base = model.apply({"params": params}, x)
  np.testing.assert_array_equal(tuned.apply(start, x), base)
  variables = {"params": params, "ia3": layers.perturbed(start["ia3"], 2)}
  y = tuned.apply(variables, x)
  assert float(jnp.max(jnp.abs(y - base))) > 0.01 * float(jnp.max(jnp.abs(base)))
  merged = model.apply({"params": tuned.merge(variables)}, x)
  np.testing.assert_allclose(y, merged, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(y))))
