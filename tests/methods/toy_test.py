"""Logits of the toy ViT under every SAN variant and SSF, against the official classes."""

import contextlib
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax.methods import SAN, SSF
from peft_jax.models import stack_blocks
from peft_jax.sites import sites
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned

spec = importlib.util.spec_from_file_location("toy", pathlib.Path(__file__).parent / "toy.py")
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)



@contextlib.contextmanager
def float64():
  """Flax's own LayerNorm promotes float64 with float32: no strictness inside."""
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    yield


GOLDEN = {
  "nt": (SAN(mode="nt"), [[-0.161097, 0.193884, 0.123208], [-0.150329, 0.168191, 0.160857]]),
  "base_sp": (
    SAN(variant="base", mode="sp"),
    [[-0.428455, 0.540228, -0.262100], [-0.473515, 0.567530, -0.268489]],
  ),
  "base": (
    SAN(variant="base"),
    [[-0.480348, 0.593057, -0.309761], [-0.601645, 0.725188, -0.437456]],
  ),
  "base_recal": (
    SAN(variant="base_recal"),
    [[-0.640568, 0.797211, -0.534257], [-0.737378, 0.901094, -0.633209]],
  ),
  "resize_sp": (
    SAN(mode="sp"),
    [[-0.596345, 0.722087, -0.436913], [-0.604697, 0.724402, -0.432923]],
  ),
  "resize": (SAN(), [[-0.667888, 0.813281, -0.537220], [-0.708822, 0.861008, -0.586225]]),
  "prev_fc2": (
    SAN(qkv_source="prev_fc2"),
    [[-0.668254, 0.813401, -0.537079], [-0.704214, 0.854800, -0.579134]],
  ),
  "v_slice": (
    SAN(proj_source="v_slice"),
    [[-0.670268, 0.818313, -0.544323], [-0.690038, 0.838428, -0.562459]],
  ),
}


def tune(method, loop="python"):
  x = jnp.asarray(toy.images())
  model = toy.model(loop)
  tuned = Tuned(model, (method,), sites(model, x))
  params = jax.tree.map(jnp.asarray, toy.params())
  if isinstance(method, SAN):
    values = toy.san()
    needed = flat(jax.eval_shape(tuned.init, jax.random.key(0))["san"])
    if loop == "scan":
      values = flat(stack_blocks(nest(values)))
    tree = {path: jnp.asarray(values[path]) for path in needed}
    variables = {"params": params, "san": nest(tree)}
  else:
    variables = {"params": params, "ssf": jax.tree.map(jnp.asarray, toy.ssf())}
  if loop == "scan":
    variables["params"] = stack_blocks(variables["params"])
    if not isinstance(method, SAN):
      variables["ssf"] = stack_blocks(variables["ssf"])
  return tuned, variables, x


def test_plain():
  with float64():
    y = toy.model().apply({"params": toy.params()}, jnp.asarray(toy.images()))
    expected = [[-0.335197, 0.413208, -0.115995], [-0.327539, 0.387286, -0.074804]]
    np.testing.assert_allclose(y, expected, atol=6e-7)


@pytest.mark.parametrize("loop", ["python", "scan"])
@pytest.mark.parametrize("name", GOLDEN)
def test_san(name, loop):
  method, expected = GOLDEN[name]
  with float64():
    tuned, variables, x = tune(method, loop)
    np.testing.assert_allclose(tuned.apply(variables, x), expected, atol=6e-7)
    merged = tuned.model.apply({"params": tuned.merge(variables)}, x)
    np.testing.assert_allclose(merged, expected, atol=6e-7)


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_ssf(loop):
  expected = [[0.188005, -0.075602, 0.281937], [0.182047, -0.070541, 0.278359]]
  with float64():
    tuned, variables, x = tune(SSF(), loop)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["ssf"])) == 160
    np.testing.assert_allclose(tuned.apply(variables, x), expected, atol=6e-7)
    merged = tuned.model.apply({"params": tuned.merge(variables)}, x)
    np.testing.assert_allclose(merged, expected, atol=6e-7)


def test_resize_details():
  with float64():
    tuned, variables, x = tune(SAN(reg_lambda=1.0))
    proj = tuned.merge(variables)["encoder"]["blocks_0"]["attn"]["proj"]
    row = [0.180788, -0.098116, -0.341175, -0.189668]
    np.testing.assert_allclose(proj["kernel"][:, 0], row, atol=6e-7)
    bias = [-0.039444, -0.068151, -0.076765, -0.046549]
    np.testing.assert_allclose(proj["bias"], bias, atol=6e-7)
    np.testing.assert_allclose(tuned.penalty(variables), 2.664426, atol=6e-7)
    grad = jax.grad(lambda san: tuned.apply({**variables, "san": san}, x).sum())(variables["san"])
    stem = [-0.133048, 0.166015, 0.036147, -0.023435]
    np.testing.assert_allclose(grad["patch_embed"]["scale"], stem, atol=6e-7)
    recal = grad["encoder"]["blocks_0"]["mlp"]["fc1"]["recal"]
    np.testing.assert_allclose(recal, [0.341608, 0.174205, 1.234494, -0.810551], atol=6e-7)
