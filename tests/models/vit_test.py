"""The ViT: its tree, its four loops, stochastic depth, and its errors."""

import ast
import functools
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_jax
from peft_jax import models
from peft_jax.models import layers, vit


def perturbed(model, seed=0):
  """Parameters at which everything matters: no zero bias, no layer scale near zero."""
  s, plain = model.image_size, model.clone(loop="python", dtype="float32", drop_path=0.0)
  shapes = jax.eval_shape(plain.init, jax.random.key(0), jax.ShapeDtypeStruct((1, s, s, 3), "f4"))
  leaves, structure = jax.tree.flatten(shapes["params"])
  draw = np.random.RandomState(seed)
  fans = [math.prod(x.shape[:-1]) if len(x.shape) > 1 else 4 for x in leaves]
  return jax.tree.unflatten(structure, [
    jnp.asarray(draw.standard_normal(x.shape) / np.sqrt(fan), jnp.float32)
    for x, fan in zip(leaves, fans, strict=True)])


def laid_out(params, loop):
  return models.stack_blocks(params) if "scan" in loop else params


def images(n=2, size=32):
  return jnp.asarray(np.random.RandomState(0).standard_normal((n, size, size, 3)), jnp.float32)


def test_the_parameter_tree():
  model = models.create("vit_test", num_classes=5, layer_scale=1.0, registers=2)
  shapes = jax.tree.map(lambda x: x.shape, perturbed(model))
  dense, norm = (lambda i, o: {"kernel": (i, o), "bias": (o,)}), {"scale": (24,), "bias": (24,)}
  square = {name: dense(24, 24) for name in ("q", "k", "v", "proj")}
  block = {
    "attn": {"norm": norm, **square, "ls": (24,)},
    "mlp": {"norm": norm, "fc1": dense(24, 96), "fc2": dense(96, 24), "ls": (24,)},
  }
  assert shapes == {
    "patch_embed": {"kernel": (8, 8, 3, 24), "bias": (24,)},
    "cls_token": (1, 1, 24), "reg_tokens": (1, 2, 24), "pos_embed": (1, 17, 24),
    "encoder": {"blocks_0": block, "blocks_1": block},
    "norm": norm, "head": dense(24, 5),
  }


OPTIONS = {"plain": {}, "dinov2": {"layer_scale": 0.1, "registers": 2, "pool": "avg"}}


@functools.cache
def logits_and_gradient(options, loop):
  model = models.create("vit_test", num_classes=5, loop=loop, **OPTIONS[options])
  x = images()

  def loss(params):
    y = model.apply({"params": params}, x)
    return jnp.sum(jnp.sin(y)), y

  params = laid_out(perturbed(model), loop)
  (_, y), g = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return y, models.unstack_blocks(g)


@pytest.mark.parametrize("loop", ["remat", "scan", "scan_remat"])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_loops_agree(options, loop):
  y0, g0 = logits_and_gradient(options, "python")
  y, g = logits_and_gradient(options, loop)
  assert jnp.ptp(y0) > 0.1 and all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(g0))
  np.testing.assert_allclose(y, y0, rtol=1e-4, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), g, g0)


@pytest.mark.parametrize("loop", vit.LOOPS)
def test_init_has_the_loops_layout(loop):
  model = models.create("vit_test", num_classes=5, loop=loop)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images())["params"]
  same = laid_out(perturbed(model), loop)
  assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(jnp.shape, same)


@pytest.mark.parametrize("loop", vit.LOOPS)
def test_drop_path_drops_branches_of_single_samples(loop):
  # Depth 2: the first block's rate is 0, the last one's 0.5, so equal images have 4 outcomes.
  model = models.create("vit_test", num_classes=3, loop=loop, drop_path=0.5)
  variables = {"params": laid_out(perturbed(model), loop)}
  x = jnp.repeat(images(1), 64, axis=0)
  train = jax.jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}))
  out = [train(jax.random.key(i)) for i in range(2)]
  groups = {tuple(row) for row in np.round(np.asarray(out[0], np.float64), 3)}
  assert len(groups) == 4
  assert jnp.any(out[0] != out[1])
  still = jax.jit(model.apply)(variables, x)
  assert jnp.allclose(still, still[:1], atol=1e-5)
  with pytest.raises(ValueError, match="rngs={'dropout': key}"):
    jax.eval_shape(lambda: model.apply(variables, x, train=True))


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
  model = models.create("vit_test", num_classes=5)
  params, x = perturbed(model), images()
  y = jax.jit(model.apply)({"params": params}, x)
  low = model.clone(dtype="bfloat16")
  z, seen = jax.jit(lambda p: low.apply({"params": p}, x, capture_intermediates=True))(params)
  assert z.dtype == jnp.float32
  assert 0 < jnp.abs(z - y).max() < 0.1
  assert seen["intermediates"]["encoder"]["__call__"][0].dtype == jnp.bfloat16
  fresh = jax.eval_shape(low.init, jax.random.key(0), x)
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(fresh))


def test_gelus():
  x = np.linspace(-3, 3, 7).astype(np.float32)
  exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
  tanh = [v * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x]
  quick = [v / (1 + math.exp(-1.702 * v)) for v in x]
  for name, want in (("exact", exact), ("tanh", tanh), ("quick", quick)):
    np.testing.assert_allclose(layers.GELUS[name](jnp.asarray(x)), want, atol=2e-6)


def test_norm_survives_a_common_offset():
  x = np.random.RandomState(0).standard_normal((4, 64)) + 100
  want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

  class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
      return layers.Numerics(eps=1e-6).norm(x, "norm")

  got = Norm().init_with_output(jax.random.key(0), jnp.asarray(x, jnp.float32))[0]
  np.testing.assert_allclose(got, want, atol=2e-4)


def test_a_distilled_model_averages_its_heads():
  model = models.create("vit_test", num_classes=3, distilled=True)
  params, x = perturbed(model), images()
  assert params["dist_token"].shape == (1, 1, 24) and params["pos_embed"].shape == (1, 18, 24)
  apply = jax.jit(model.apply)
  y, off = apply({"params": params}, x), jax.tree.map(jnp.zeros_like, params["head"])
  parts = [apply({"params": {**params, name: off}}, x) for name in ("head", "head_dist")]
  assert all(jnp.abs(part - y).max() > 0.1 for part in parts)
  np.testing.assert_allclose(y, parts[0] + parts[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_pre_logits_is_a_tanh_layer_before_the_head(pool):
  model = models.create("vit_test", num_classes=3, pre_logits=True, pool=pool)
  params, x = perturbed(model), images()
  y = jax.jit(model.apply)({"params": params}, x)
  rest = {k: v for k, v in params.items() if not k.startswith(("head", "pre_logits"))}
  z = jax.jit(model.clone(num_classes=0, pre_logits=False).apply)({"params": rest}, x)
  z = np.tanh(z @ params["pre_logits"]["kernel"] + params["pre_logits"]["bias"][None])
  want = z @ params["head"]["kernel"] + params["head"]["bias"][None]
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_clip_projects_without_bias():
  model = models.create("clip_b32", num_classes=512, head_bias=False, depth=1)
  shapes = jax.tree.map(lambda x: x.shape, perturbed(model))
  assert shapes["head"] == {"kernel": (768, 512)}
  assert shapes["patch_embed"] == {"kernel": (32, 32, 3, 768)}
  assert shapes["norm_pre"] == {"scale": (768,), "bias": (768,)}


def test_zero_classes_give_features():
  model = models.create("vit_test", num_classes=0)
  assert jax.eval_shape(model.apply, {"params": perturbed(model)}, images()).shape == (2, 24)


def test_models_are_values():
  a, b = (models.create("vit_test", num_classes=5) for _ in range(2))
  assert a == b and hash(a) == hash(b) and a != models.create("vit_test", num_classes=6)


@pytest.mark.parametrize("call, sentence", [
  (lambda: models.create("vit_b61", num_classes=2), "near it: vit_b16"),
  (lambda: models.create("vit_b16", num_classes=2, image_size=100), "take 96 or 112"),
  (lambda: models.create("dinov2_vits14", num_classes=2, image_size=7), "take 14"),
  (lambda: models.create("vit_b16", num_classes=2, image_size=224.0), "image_size=224.0"),
  (lambda: models.create("vit_b16", num_classes=-1), "num_classes=-1"),
  (lambda: models.create("vit_b16", num_classes=2, rank=4), "no option rank"),
  (lambda: models.create("vit_b16", num_classes=2, loop="while"), "python, remat, scan"),
  (lambda: models.create("vit_b16", num_classes=2, dtype="float8"), "float32, bfloat16"),
  (lambda: models.create("vit_b16", num_classes=2, heads=7), "divisible by heads=7"),
  (lambda: models.create("vit_b16", num_classes=2, drop_path=1.0), r"\[0, 1\)"),
  (lambda: models.create("vit_b16", num_classes=2, attention="cudnn"), "dtype='bfloat16'"),
  (lambda: models.create("vit_b16", num_classes=2, dtype="float64"), "JAX_ENABLE_X64"),
  (lambda: models.create("vit_b16", num_classes=2, distilled=True, pool="avg"), "pool='cls'"),
])
def test_create_refuses(call, sentence):
  with pytest.raises(ValueError, match=sentence):
    call()


@pytest.mark.parametrize("x, sentence", [
  (np.zeros((32, 32, 3), np.float32), r"\[batch, 32, 32, 3\], not \(32, 32, 3\)"),
  (np.zeros((1, 3, 32, 32), np.float32), r"\[batch, 32, 32, 3\]"),
  (np.zeros((1, 32, 40, 3), np.float32), "32 x 40"),
  (np.zeros((1, 32, 32, 3), np.uint8), "uint8"),
])
def test_a_call_refuses(x, sentence):
  model = models.create("vit_test", num_classes=2)
  with pytest.raises(ValueError, match=sentence):
    jax.eval_shape(model.init, jax.random.key(0), x)


@pytest.mark.parametrize("samples", [1, 3])
def test_more_tokens_to_attend_to_are_those_of_a_longer_stream(samples):
  module = vit.Attention(vit.BlockSpec(heads=2, hidden=8, eps=1e-6))
  draw = np.random.RandomState(0)
  x, tokens = (jnp.asarray(draw.standard_normal((n, m, 8)), jnp.float32)
               for n, m in ((3, 5), (samples, 4)))
  variables = jax.tree.map(lambda a: a + 0.3 * draw.standard_normal(a.shape).astype("f4"),
                           module.init(jax.random.key(0), x))
  longer = jnp.concatenate([x, jnp.broadcast_to(tokens, (3, 4, 8))], axis=1)
  y = module.apply(variables, (x, tokens))
  assert np.abs(y - module.apply(variables, x)).max() > 1e-2
  np.testing.assert_allclose(y, module.apply(variables, longer)[:, :5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("package", ["models", "weights"])
def test_backbones_and_weights_know_nothing_of_tuning(package):
  allowed = ("peft_jax.models", "peft_jax.weights", "peft_jax.tree", "peft_jax.files",
             "peft_jax.safetensors")
  for file in (pathlib.Path(peft_jax.__file__).parent / package).rglob("*.py"):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module.startswith("peft_jax"):
        full = [f"{node.module}.{a.name}" for a in node.names]
        assert all(f.startswith(allowed) for f in full), (file, full)
