"""ConvNeXt's tree and its global response norm."""

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import models
from peft_jax.models import convnext


def tree(model):
  images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  return jax.tree.map(lambda x: x.shape, params)


def test_the_parameter_tree():
  def norm(c):
    return {"scale": (c,), "bias": (c,)}

  def conv(side, i, o):
    return {"kernel": (side, side, i, o), "bias": (o,)}

  def block(c, **last):
    return {"dwconv": conv(7, 1, c), "norm": norm(c),
            "fc1": {"kernel": (c, 4 * c), "bias": (4 * c,)},
            "fc2": {"kernel": (4 * c, c), "bias": (c,)}, **last}

  few = {"num_classes": 5, "widths": (8, 12), "depths": (1, 2)}
  for v2 in (False, True):
    last = (lambda c: {"grn": norm(4 * c)}) if v2 else (lambda c: {"gamma": (c,)})
    more = {"layer_scale": None, "grn": True} if v2 else {}
    assert tree(models.create("convnext_test", **few, **more)) == {
      "stem": {"conv": conv(4, 3, 8), "norm": norm(8)},
      "stages_0": {"blocks_0": block(8, **last(8))},
      "stages_1": {"downsample": {"norm": norm(8), "conv": conv(2, 8, 12)},
                   "blocks_0": block(12, **last(12)), "blocks_1": block(12, **last(12))},
      "norm": norm(12), "head": {"kernel": (12, 5), "bias": (5,)},
    }


def test_a_block_is_what_is_added():
  model = models.create("convnext_test", num_classes=0, widths=(8,), depths=(1,), layer_scale=0.5,
                        image_size=16)
  x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 16, 16, 3)), jnp.float32)
  variables = model.init(jax.random.key(0), x)
  _, seen = model.apply(variables, x, capture_intermediates=True)
  seen = seen["intermediates"]
  stem, block = seen["stem"]["__call__"][0], seen["stages_0"]["blocks_0"]["__call__"][0]
  assert jnp.abs(block).max() > 1e-4
  np.testing.assert_allclose(seen["stages_0"]["__call__"][0], stem + block, rtol=1e-5, atol=1e-6)


def test_the_response_norm_has_a_gradient_at_zero():
  module = convnext.ResponseNorm(convnext.Numerics(eps=1e-6))
  params = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
  x = jnp.ones((1, 4, 3)).at[:, :, 1].set(0.0)
  y, pull = jax.vjp(lambda x: module.apply({"params": params}, x), x)
  n = np.array([2.0, 0.0, 2.0]) / (4 / 3 + 1e-6)
  np.testing.assert_allclose(y[0, 0], [1 + n[0], 0, 1 + n[2]], rtol=1e-5)
  assert np.all(np.isfinite(pull(jnp.ones_like(y))[0]))
