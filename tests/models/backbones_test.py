"""What all backbones promise: sizes, trees, loops, stochastic depth, types, errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models
from peft_jax.models.layers import drop

COUNTS = {  # features, without the head, as timm 1.0.31 counts them
  "vit_tiny_patch16_224": 5_524_416,
  "vit_small_patch16_224": 21_665_664,
  "vit_base_patch16_224": 85_798_656,
  "vit_large_patch16_224": 303_301_632,
  "vit_huge_patch14_224": 630_764_800,
  "deit_tiny_distilled_patch16_224": 5_524_800,
  "deit_small_distilled_patch16_224": 21_666_432,
  "deit_base_distilled_patch16_224": 85_800_192,
  "vit_base_patch16_clip_224": 85_799_424,
  "vit_base_patch32_clip_224": 87_456_000,
  "dinov2_vits14": 22_056_192,
  "swin_tiny_patch4_window7_224": 27_519_354,
  "swin_small_patch4_window7_224": 48_837_258,
  "swin_base_patch4_window7_224": 86_743_224,
  "swin_base_patch4_window12_384": 86_878_584,
  "swin_large_patch4_window7_224": 194_995_476,
  "swin_large_patch4_window12_384": 195_198_516,
  "convnext_atto": 3_374_520,
  "convnext_femto": 4_832_784,
  "convnext_pico": 8_532_672,
  "convnext_nano": 14_952_560,
  "convnext_tiny": 27_820_128,
  "convnext_small": 49_454_688,
  "convnext_base": 87_566_464,
  "convnext_large": 196_230_336,
  "convnext_xlarge": 348_147_968,
  "convnextv2_atto": 3_387_400,
  "convnextv2_femto": 4_848_240,
  "convnextv2_pico": 8_553_280,
  "convnextv2_nano": 14_982_800,
  "convnextv2_tiny": 27_866_496,
  "convnextv2_base": 87_692_800,
  "convnextv2_large": 196_419_840,
  "convnextv2_huge": 657_472_640,
}

TINY = {
  "swin": ("swin_test", {"depths": (2, 1)}),
  "swin padded": ("swin_test", {"depths": (2,), "heads": (2,), "image_size": 36}),
  "convnext": ("convnext_test", {"layer_scale": 0.5, "widths": (8, 24), "depths": (1, 2)}),
  "convnextv2": ("convnext_test", {"layer_scale": None, "grn": True, "widths": (8, 12),
                                   "depths": (1, 1)}),
}
EACH = pytest.mark.parametrize("case", [
  pytest.param(case, marks=() if case in ("swin padded", "convnextv2") else pytest.mark.slow)
  for case in TINY])


def create(case, **more):
  name, overrides = TINY[case]
  return models.create(name, **{"num_classes": 5, "image_size": 32, **overrides, **more})


def shapes(model):
  s = model.image_size
  images = jax.ShapeDtypeStruct((1, s, s, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def perturbed(model, seed=0):
  """Parameters at which everything matters: no zero bias, no layer scale near zero."""
  leaves, structure = jax.tree.flatten(shapes(model.clone(dtype="float32")))
  draw = np.random.RandomState(seed)
  fans = [math.prod(x.shape[:-1]) if len(x.shape) > 1 else 4 for x in leaves]
  return jax.tree.unflatten(structure, [
    jnp.asarray(draw.standard_normal(x.shape) / np.sqrt(fan), jnp.float32)
    for x, fan in zip(leaves, fans, strict=True)])


def images(model, n=2):
  s = model.image_size
  return jnp.asarray(np.random.RandomState(0).standard_normal((n, s, s, 3)), jnp.float32)


# The large ones only repeat more of the same blocks.
SLOW = ("huge", "large", "small", "nano", "pico", "femto", "v2_base", "v2_tiny", "384")


@pytest.mark.parametrize("name", [
  pytest.param(n, marks=pytest.mark.slow if any(s in n for s in SLOW) else ()) for n in COUNTS])
def test_parameter_counts(name):
  model = models.create(name, num_classes=10)
  if isinstance(model, models.ViT):
    model = model.clone(loop="scan")
  sizes = {k: sum(math.prod(x.shape) for x in jax.tree.leaves(v)) for k, v in shapes(model).items()}
  heads = [k for k in sizes if k.startswith("head")]
  width = shapes(model)["head"]["kernel"].shape[0]
  assert sum(sizes.pop(k) for k in heads) == len(heads) * 10 * (width + 1)
  assert sum(sizes.values()) == COUNTS[name]


def test_dinov2_has_fewer_positions_at_224_pixels():
  model = models.create("dinov2_vits14", num_classes=0, image_size=224, loop="scan")
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes(model))) == 21_628_800


def test_every_published_preset_is_counted():
  counted = [models.PRESETS[name] for name in COUNTS]
  left = {name for name, preset in models.PRESETS.items() if preset not in counted}
  assert left == {
    "dinov2_vitb14", "dinov2_vitl14", "dinov2_vits14_reg4", "dinov2_vitb14_reg4",
    "dinov2_vitl14_reg4", "vit_base_patch16_clip_quickgelu_224", "clip_b16",
    "vit_base_patch32_clip_quickgelu_224", "clip_b32", "vit_test", "swin_test", "convnext_test",
    "tiny_vit", "tiny_swin", "tiny_convnext"}


@functools.cache
def logits_and_gradient(case, loop):
  model = create(case, loop=loop)
  x = images(model)

  def loss(params):
    y = model.apply({"params": params}, x)
    return jnp.sum(jnp.sin(y)), y

  (_, y), g = jax.jit(jax.value_and_grad(loss, has_aux=True))(perturbed(model))
  return y, g


@EACH
def test_remat_changes_no_number(case):
  y0, g0 = logits_and_gradient(case, "python")
  y, g = logits_and_gradient(case, "remat")
  assert jnp.ptp(y0) > 0.1 and all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(g0))
  np.testing.assert_allclose(y, y0, rtol=1e-4, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), g, g0)


@pytest.mark.parametrize("case", ["swin", "convnext"])
def test_remat_recomputes_every_block(case):
  def remats(loop):
    model = create(case, loop=loop)
    return str(jax.make_jaxpr(model.apply)({"params": perturbed(model)}, images(model))).count(
      "remat2[")

  assert (remats("python"), remats("remat")) == (0, 3)


@pytest.mark.parametrize("loop", ["python", pytest.param("remat", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["swin", "convnext"])
def test_drop_path_drops_branches_of_single_samples(case, loop):
  # Rates rise from 0: with two blocks of one stage the last one's branches alone are dropped.
  few = {"depths": (2,)} | ({"heads": (2,)} if case == "swin" else {"widths": (8,)})
  model = create(case, loop=loop, drop_path=0.5, **few)
  variables = {"params": perturbed(model)}
  x = jnp.repeat(images(model, 1), 32, axis=0)
  train = jax.jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}))
  out = [train(jax.random.key(i)) for i in range(2)]
  groups = {tuple(row) for row in np.round(np.asarray(out[0], np.float64), 3)}
  assert len(groups) == (4 if case == "swin" else 2)  # two branches, or one
  assert jnp.any(out[0] != out[1])
  still = jax.jit(model.apply)(variables, x)
  assert jnp.allclose(still, still[:1], atol=1e-5)
  with pytest.raises(ValueError, match="rngs={'dropout': key}"):
    jax.eval_shape(lambda: model.apply(variables, x, train=True))


@pytest.mark.parametrize("name, blocks, branches", [
  ("swin_base_patch4_window7_224", 24, 2), ("convnext_base", 36, 1), ("vit_base_patch16_224", 12, 2)
])
def test_the_rates_rise_over_all_blocks(name, blocks, branches, monkeypatch):
  seen = []
  for module in (models.vit, models.swin, models.convnext):
    monkeypatch.setattr(module, "drop", lambda _, y, rate: (seen.append(rate), y)[1])
  model = models.create(name, num_classes=0, drop_path=0.1, image_size=32)
  rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  jax.eval_shape(functools.partial(model.init, train=True), rngs, images(model))
  want = [0.1 * i / (blocks - 1) for i in range(blocks)]
  np.testing.assert_allclose(seen, np.repeat(want, branches), rtol=1e-6)


def test_drop_path_keeps_the_mean():
  module = models.ViT(2).bind({}, rngs={"dropout": jax.random.key(0)})
  dropped = drop(module, jnp.ones((4096, 1, 2, 2)), 0.25)
  assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
  assert np.all(np.ptp(dropped, axis=(1, 2, 3)) == 0)  # a sample's whole branch
  assert abs(jnp.mean(dropped) - 1) < 0.03  # standard error 0.009
  maps, tokens = drop(module, (jnp.ones((64, 2, 2, 3)), jnp.ones((64, 5, 3))), 0.5)
  kept = maps[:, 0, 0, 0]
  assert 0 < np.count_nonzero(kept) < 64
  np.testing.assert_array_equal(tokens, np.broadcast_to(kept[:, None, None], (64, 5, 3)))


@EACH
def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(case):
  model = create(case)
  params, x = perturbed(model), images(model)
  y = jax.jit(model.apply)({"params": params}, x)
  low = model.clone(dtype="bfloat16")
  z, seen = jax.jit(lambda p: low.apply({"params": p}, x, capture_intermediates=True))(params)
  assert z.dtype == jnp.float32
  assert 0 < jnp.abs(z - y).max() < 0.05 * jnp.abs(y).max()
  assert seen["intermediates"]["stages_0"]["__call__"][0].dtype == jnp.bfloat16
  fresh = jax.eval_shape(low.init, jax.random.key(0), x)
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(fresh))


@pytest.mark.parametrize("case, width", [("swin", 24), ("convnext", 24)])
def test_zero_classes_give_features(case, width):
  model = create(case, num_classes=0)
  y = jax.eval_shape(model.apply, {"params": shapes(model)}, images(model))
  assert y.shape == (2, width)


@pytest.mark.parametrize("case", TINY)
def test_models_are_values(case):
  a, b = create(case), create(case)
  assert a == b and hash(a) == hash(b) and a != create(case, num_classes=6)


@pytest.mark.parametrize("name, options, sentence", [
  ("swin_t", {"loop": "scan"}, r"stages of a Swin differ in shape: take loop='remat'"),
  ("convnext_t", {"loop": "scan_remat"}, "stages of a ConvNeXt differ"),
  ("swin_t", {"loop": "while"}, "loop='while' is none of python, remat"),
  ("swin_t", {"attention": "cudnn"}, "attention='cudnn' does not run in a Swin"),
  ("convnext_t", {"attention": "cudnn"}, "does not run in a ConvNeXt"),
  ("swin_t", {"layer_scale": 1.0}, "swin_t has no option layer_scale; there are num_classes"),
  ("swin_t", {"depths": (2, 2)}, r"depths=\(2, 2\), heads=\(3, 6, 12, 24\) must be tuples"),
  ("convnext_t", {"depths": 3}, "one entry per stage"),
  ("convnext_t", {"depths": (3, 0, 9, 3)}, "above 0 for every stage"),
  ("swin_t", {"heads": (3, 6, 12, 25)}, "the width of stage 3, 768, is not divisible by 25"),
  ("swin_t", {"window": 0}, "window=0"),
  ("swin_t", {"image_size": 3}, "less than one patch=4"),
  ("convnext_t", {"image_size": 31}, "take 32 or more"),
  ("swin_t", {"image_size": 224.0}, "image_size=224.0"),
  ("swin_t", {"dtype": "float16"}, "float32, bfloat16"),
  ("convnext_t", {"drop_path": 1.0}, r"\[0, 1\)"),
  ("convnext_t", {"num_classes": -1}, "num_classes=-1"),
  ("swim_t", {}, "near it: swin_t"),
])
def test_create_refuses(name, options, sentence):
  with pytest.raises(ValueError, match=sentence):
    models.create(name, **{"num_classes": 2, **options})


def test_options_from_json_are_tuples_again():
  assert models.create("swin_test", num_classes=2, depths=[1, 1]).depths == (1, 1)


def test_an_option_a_family_lacks_may_be_none():
  assert models.create("swin_test", num_classes=2, layer_scale=None).width == 12


@pytest.mark.parametrize("name", ["swin_test", "convnext_test"])
@pytest.mark.parametrize("shape, dtype, sentence", [
  ((32, 32, 3), np.float32, r"\[batch, 32, 32, 3\], not \(32, 32, 3\)"),
  ((1, 3, 32, 32), np.float32, r"\[batch, 32, 32, 3\]"),
  ((1, 32, 40, 3), np.float32, "32 x 40 .* with another image_size[.]"),
  ((1, 32, 32, 3), np.uint8, "uint8"),
])
def test_a_call_refuses(name, shape, dtype, sentence):
  model = models.create(name, num_classes=2, image_size=32)
  with pytest.raises(ValueError, match=sentence):
    jax.eval_shape(model.init, jax.random.key(0), np.zeros(shape, dtype))


def test_presets_name_what_there_is():
  assert {p.normalize for p in models.PRESETS.values()} == {"inception", "imagenet", "clip"}
  assert models.PRESETS["vit_b16"] is models.PRESETS["vit_base_patch16_224"]
  for name in models.PRESETS:
    assert models.create(name, num_classes=2).image_size == models.PRESETS[name].image_size
