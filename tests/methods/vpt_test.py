"""VPT: against literal insertion, in every loop, per sample; frames; counts; starts; refusals."""

import dataclasses
import functools
import importlib.util
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models
from peft_jax.count import count
from peft_jax.method import Method
from peft_jax.methods import SSF, VPT, LoRA
from peft_jax.sites import sites
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned, join


def neighbour(name):
  path = pathlib.Path(__file__).parent / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


layers, literal = neighbour("layers"), neighbour("literal")

VIT = dict(num_classes=5, width=12, depth=2, heads=3, patch=8, image_size=16, layer_scale=0.5)
MODELS = {
  "vit": models.ViT(**VIT),
  "registers": models.ViT(**VIT, pool="avg", registers=2),
  "swin": models.Swin(5, width=6, depths=(2, 1), heads=(2, 3), window=3, image_size=32),
  "convnext": models.ConvNeXt(5, (4, 6), (1, 1), image_size=16, layer_scale=0.5),
}
VARIANTS = {
  "deep": VPT(length=3),
  "deep_official": VPT(length=3, pool="official"),
  "shallow": VPT(length=3, deep=False),
  "shallow_official": VPT(length=3, deep=False, pool="official"),
}
# LLVM's optimisations cost half of these tests' time and change no law.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def slow_but(quick, rows):
  return [pytest.param(*row, marks=() if row in quick else pytest.mark.slow, id="-".join(row))
          for row in rows]


@functools.cache
def images(name):
  side = MODELS[name].image_size
  return jnp.asarray(np.random.default_rng(0).standard_normal((3, side, side, 3), "f4"))


def drawn(shapes, seed):
  """N(0, 0.5^2) for every leaf, N(1, 0.5^2) for scales: no zero and no tiny layer scale."""
  rng = np.random.default_rng(seed)
  return nest({
    path: jnp.asarray(path.endswith("scale") + 0.5 * rng.standard_normal(leaf.shape), jnp.float32)
    for path, leaf in flat(shapes).items()})


def attach(methods, name, **options):
  model = dataclasses.replace(MODELS[name], **options)
  return Tuned(model, methods, sites(model, images(name)))


@functools.cache
def variables(methods, name):
  """Everything drawn, in the layout of the python loop."""
  shapes = attach(methods, name).shapes
  own = {c: tree for c, tree in shapes.items() if c != "params"}
  return {"params": drawn(shapes["params"], 1), **drawn(own, 2)}


@functools.cache
def outcome(methods, name, loop="python", dtype="float32"):
  """(logits, gradients of their square sum), compiled."""
  tuned, v = attach(methods, name, loop=loop, dtype=dtype), variables(methods, name)
  train, frozen = tuned.split(models.stack_blocks(v) if "scan" in loop else v)

  def loss(train):
    y = tuned.apply(join(train, frozen), images(name))
    return jnp.sum(jnp.square(y)), y

  step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)
  gradients, y = step(train)
  return y, models.unstack_blocks(gradients) if "scan" in loop else gradients


def base(name):
  tuned = attach((), name)
  apply = jax.jit(tuned.model.apply, compiler_options=QUICK)
  return apply({"params": variables((VARIANTS["deep"],), name)["params"]}, images(name))


def assert_moved(y, other):
  assert np.max(np.abs(y - other)) > 1e-2 * np.max(np.abs(other))


def assert_close(y, expected, rtol=1e-5):
  expected = np.asarray(expected)
  np.testing.assert_allclose(y, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


# What prompts are: the released code's insertion, image by image.

LITERAL = [(name, variant) for name in ("vit", "registers", "swin") for variant in VARIANTS]


def in_float64(methods, name):
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # flax mixes the two types
    tuned = attach(methods, name, dtype="float64")
    x = jnp.asarray(np.asarray(images(name), np.float64))
    y = jax.jit(tuned.apply, compiler_options=QUICK)(variables(methods, name), x)
    assert y.dtype == np.float64
    return np.asarray(y)


def by_hand(methods, name, prompts, **options):
  forward = literal.swin if name == "swin" else literal.vit
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables(methods, name))
  x = np.asarray(images(name), np.float64)
  return np.stack([forward(MODELS[name], params["params"], image, prompts, **options)
                   for image in x])


def prompts_of(method, name):
  """[tokens [p, C], ...] in the order of the blocks."""
  order = {path: i for i, path in enumerate(attach((), name).table)}
  tokens = {path.rpartition("/")[0]: np.asarray(leaf, np.float64)
            for path, leaf in flat(variables((method,), name)["vpt"]).items()}
  return [tokens[path] for path in sorted(tokens, key=order.get)]


@pytest.mark.parametrize("name, variant", slow_but(
  [("vit", "deep"), ("registers", "shallow_official"), ("swin", "deep"), ("swin", "shallow")],
  LITERAL))
def test_prompts_are_those_inserted_literally_for_each_image_alone(name, variant):
  method = VARIANTS[variant]
  prompts, official = prompts_of(method, name), method.pool == "official"
  assert len(prompts) == (len(MODELS[name].depths) + 1 if name == "swin" else 2) ** method.deep
  expected = by_hand((method,), name, prompts, official=official)
  without = by_hand((method,), name, [np.zeros((0, p.shape[1])) for p in prompts])
  assert_moved(expected, without)
  np.testing.assert_allclose(in_float64((method,), name), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("official", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_shared_prompts_are_the_same_ones_before_every_block(official):
  method = VPT(length=3, shared=True, pool="official" if official else "image")
  (prompts,) = prompts_of(method, "registers")
  expected = by_hand((method,), "registers", [prompts] * 2, official=official)
  assert_moved(expected, by_hand((method,), "registers", [prompts], official=official))
  np.testing.assert_allclose(in_float64((method,), "registers"), expected, rtol=0, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "registers", "swin"])
def test_without_prompts_the_literal_model_is_the_model(name):
  method = VARIANTS["shallow"]
  expected = by_hand((method,), name, [np.zeros((0, 12 if name != "swin" else 6))])
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    model = dataclasses.replace(MODELS[name], dtype="float64")
    y = model.apply({"params": variables((method,), name)["params"]},
                    jnp.asarray(np.asarray(images(name), np.float64)))
  np.testing.assert_allclose(y, expected, rtol=0, atol=1e-11)


def test_what_a_block_makes_of_deep_prompts_is_read_by_nothing():
  method = VARIANTS["deep"]
  prompts, noise = prompts_of(method, "vit"), np.arange(12.0)
  expected = by_hand((method,), "vit", prompts)
  np.testing.assert_array_equal(by_hand((method,), "vit", prompts, noise=noise), expected)
  shallow = by_hand((method,), "vit", prompts[:1])
  assert_moved(by_hand((method,), "vit", prompts[:1], noise=noise), shallow)


# Loops, gradients, types.


LOOPS = [
  (name, variant, loop)
  for name, loops in {
    "vit": ("remat", "scan", "scan_remat"), "registers": ("remat",), "swin": ("remat",),
    "convnext": ("remat",),
  }.items()
  for variant in VARIANTS
  for loop in loops
  if not ("scan" in loop and variant == "deep_official")
  and (name != "convnext" or variant == "deep")  # the same frame
]


@pytest.mark.parametrize("name, variant, loop", slow_but(
  [("vit", "deep", "scan_remat"), ("convnext", "deep", "remat")], LOOPS))
def test_every_loop_gives_the_same_and_every_leaf_has_a_gradient(name, variant, loop):
  methods = (VARIANTS[variant],)
  y, gradients = outcome(methods, name, loop)
  expected, first = outcome(methods, name)
  assert_moved(expected, base(name))
  assert_close(y, expected)
  gradients, first = flat(gradients), flat(first)
  largest = max(float(jnp.max(jnp.abs(g))) for g in first.values())
  assert gradients.keys() == first.keys()
  for path, gradient in first.items():
    assert float(jnp.max(jnp.abs(gradient))) > 1e-6 * largest, path
    assert_close(gradients[path], gradient, rtol=2e-4)


@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_types_and_the_shapes_of_the_stream_stay(name, variant):
  """Every module computes in the type it computes in without prompts; the logits keep all."""
  methods = (VARIANTS[variant],)
  tuned = attach(methods, name, dtype="bfloat16")
  v = variables(methods, name)

  def outputs(apply):
    seen = {}

    def spy(next_fun, inputs, named, context):
      y = next_fun(*inputs, **named)
      leaves = jax.tree.leaves(y)
      seen["/".join(context.module.path)] = (leaves[0].shape, {leaf.dtype for leaf in leaves})
      return y

    with nn.intercept_methods(spy):
      jax.eval_shape(apply, v, images(name))
    return seen

  plain = outputs(lambda v, x: tuned.model.apply({"params": v["params"]}, x))
  found = outputs(tuned.apply)
  assert found.keys() == plain.keys()
  assert {p: dtypes for p, (_, dtypes) in found.items()} == {
    p: dtypes for p, (_, dtypes) in plain.items()}
  branches = [p for p in plain if name != "convnext" and methods[0].deep
              and p.endswith(("attn", "mlp")) and methods[0].pool == "image"]
  for path in ("", *branches):
    assert found[path][0] == plain[path][0]


# Beside other methods.


@pytest.mark.parametrize("name, variant", slow_but(
  [("vit", "deep")], [(n, v) for n in ("vit", "swin") for v in ("deep", "shallow")]))
@pytest.mark.parametrize("other", [LoRA(rank=2, sites=".*/(q|k|v)"), SSF()], ids=["lora", "ssf"])
def test_inner_layers_tuned_by_others_see_the_prompts_too(name, variant, other):
  """Equal to prompts on the merged weights, in which k and v treat all tokens alike."""
  vpt = VARIANTS[variant]
  tuned, v = attach((other, vpt), name), variables((other, vpt), name)
  own = {c: tree for c, tree in v.items() if c != "vpt"}
  merged = {"params": attach((other,), name).merge(own), "vpt": v["vpt"]}
  apply = functools.partial(jax.jit, compiler_options=QUICK)
  y = apply(tuned.apply)(v, images(name))
  alone = apply(attach((vpt,), name).apply)
  assert_moved(y, alone({**merged, "params": v["params"]}, images(name)))
  assert_close(y, alone(merged, images(name)))


# One call at a time.


def called(method, site_path, x, rng=None, name="vit"):
  """What the layer at a site is called with."""
  tuned = attach((method,), name)
  bound, places = tuned.bound[0]
  v = {path.rpartition("/")[2]: leaf
       for path, leaf in flat(variables((method,), name)["vpt"]).items()
       if path.rpartition("/")[0] == site_path}
  return bound.call(places[site_path], v, {}, lambda params, x: x, x, rng), v


def test_dropout_is_drawn_for_each_sample():
  x, at = jnp.zeros((4, 5, 12)), "encoder/blocks_1/attn"
  method = VPT(length=3, dropout=0.5)
  (_, tokens), v = called(method, at, x)
  np.testing.assert_array_equal(tokens, v["tokens"][None])
  (_, tokens), _ = called(method, at, x, jax.random.key(0))
  kept = np.asarray(tokens) != 0
  assert tokens.shape == (4, 3, 12) and 0.3 < kept.mean() < 0.7
  np.testing.assert_array_equal(tokens, np.where(kept, 2 * v["tokens"][None], 0))
  assert all((kept[i] != kept[0]).any() for i in range(1, 4))
  shallow, _ = called(VPT(length=3, dropout=0.5, deep=False, pool="official"), "encoder", x,
                      jax.random.key(0))
  np.testing.assert_array_equal(shallow[:, :5], x)
  assert ((np.asarray(shallow)[:, 5:] == 0).mean((1, 2)) > 0.2).all()


def test_a_frame_is_normalised_as_the_images_are():
  method = VPT(length=2, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
  x = images("convnext")
  y, v = called(method, "stem", x, name="convnext")
  rows, columns = ((np.asarray(v[name]) - method.mean) / method.std for name in ("rows", "columns"))
  assert y.shape == (3, 20, 20, 3) and rows.shape == (4, 20, 3) and columns.shape == (16, 4, 3)
  np.testing.assert_array_equal(y[:, 2:-2, 2:-2], x)
  for image in np.asarray(y):
    np.testing.assert_allclose(image[:2], rows[:2], rtol=1e-6)
    np.testing.assert_allclose(image[-2:], rows[2:], rtol=1e-6)
    np.testing.assert_allclose(image[2:-2, :2], columns[:, :2], rtol=1e-6)
    np.testing.assert_allclose(image[2:-2, -2:], columns[:, 2:], rtol=1e-6)
  start = attach((VPT(),), "convnext").init(jax.random.key(0))["vpt"]["stem"]
  for value in start.values():
    assert 0 <= float(value.min()) < 0.01 and 0.99 < float(value.max()) < 1


def test_the_projection_is_one_layer_for_all_prompts():
  method = VPT(length=3, project=4)
  v = variables((method,), "vit")
  kernel, bias = (np.asarray(v["vpt"]["encoder"][name]) for name in ("kernel", "bias"))
  assert kernel.shape == (4, 12) and bias.shape == (12,)
  for loop in ("python", "scan"):
    tuned = attach((method,), "vit", loop=loop)
    read = tuned.derived(models.stack_blocks(v) if "scan" in loop else v)["vpt"]
    read = flat(models.unstack_blocks(nest(read)))
    assert set(read) == {f"encoder/blocks_{i}/attn/tokens" for i in range(2)}
    for path, tokens in read.items():
      expected = np.asarray(flat(v["vpt"])[path]) @ kernel + bias
      np.testing.assert_allclose(tokens, expected, rtol=1e-5, atol=1e-6)
  shallow = VPT(length=3, project=4, deep=False)
  read = attach((shallow,), "vit").derived(variables((shallow,), "vit"))["vpt"]
  assert {path: leaf.shape for path, leaf in read.items()} == {"encoder/tokens": (3, 12)}


# Sizes and starts.


@pytest.mark.parametrize("name, method, expected", [
  *(("vit_base_patch16_224", VPT(length=p), 9_216 * p) for p in (10, 50, 100, 200)),
  *(("vit_base_patch16_224", VPT(length=p, deep=False), 768 * p) for p in (10, 50, 100, 200)),
  ("vit_base_patch16_224", VPT(length=10, project=64), 12 * 10 * 64 + 64 * 768 + 768),
  ("vit_base_patch16_224", VPT(length=10, shared=True), 7_680),
  ("swin_base_patch4_window7_224", VPT(length=10), 120_320),
  ("swin_base_patch4_window7_224", VPT(length=10, pool="official"), 120_320),
  ("swin_base_patch4_window7_224", VPT(length=10, deep=False), 1_280),
  *(("convnext_base", VPT(length=p), n) for p, n in {
    1: 2_700, 3: 8_172, 5: 13_740, 7: 19_404, 9: 25_164, 11: 31_020}.items()),
  *(pytest.param(f"vit_{name}_224", VPT(length=10, deep=deep), 10 * n, marks=pytest.mark.slow)
    for name, deep, n in [("large_patch16", True, 24_576), ("large_patch16", False, 1_024),
                          ("huge_patch14", True, 40_960), ("huge_patch14", False, 1_280)]),
  ("convnext_base", VPT(length=5, deep=False, pool="official"), 13_740),
])
def test_counts(name, method, expected):
  assert sum(layers.trained(method, name).values()) == expected


@pytest.mark.parametrize("classes, length, total, trained", [
  (6, 100, 86_724_870, 926_214),  # DMLab
  (10, 100, 86_727_946, 929_290),  # EuroSAT
  (397, 5, 86_150_029, 351_373),  # SUN397
])
def test_totals_are_those_the_released_code_prints(classes, length, total, trained):
  model = models.create("vit_base_patch16_224", num_classes=classes)
  tuned = Tuned(model, (VPT(length=length),), layers.by_shapes("vit_base_patch16_224")[2])
  tuned = dataclasses.replace(tuned, table=sites(model, models.images(model)))
  counts = count(tuned)
  assert counts["trained"] == trained
  assert counts["trained"] + counts["backbone_without_head"] == total


@pytest.mark.parametrize("name, limit", [
  ("vit_base_patch16_224", 0.0625), ("vit_large_patch16_224", 0.0578638),
  ("swin_base_patch4_window7_224", 0.1846372)])
def test_starts_are_the_papers(name, limit):
  model, _, table = layers.by_shapes(name)
  bound, places = Tuned(model, (VPT(),), table).bound[0]
  assert bound.limit == pytest.approx(limit, rel=1e-6)
  last = [path for path in places if path.endswith("attn")][-1]  # one limit for all stages
  tokens = bound.init(places[last], jax.random.key(0), {})["tokens"]
  assert 0.99 * limit < float(jnp.max(jnp.abs(tokens))) <= limit
  assert float(jnp.std(tokens)) == pytest.approx(limit / 3**0.5, rel=0.03)


def test_other_starts():
  model, _, table = layers.by_shapes("vit_base_patch16_224")
  for method, limit in (
    (VPT(start="noah"), 0.0266501), (VPT(start="noah", length=100), 0.0087951), (VPT(limit=1.0), 1),
    (VPT(project=256), (6 / (768 + 256)) ** 0.5),
  ):
    bound, places = Tuned(model, (method,), table).bound[0]
    tokens = bound.init(places["encoder/blocks_7/attn"], jax.random.key(0), {})["tokens"]
    assert 0.99 * limit < float(jnp.max(jnp.abs(tokens))) <= limit * 1.00001
  made = bound.init(places["encoder"], jax.random.key(0), {})
  assert float(jnp.std(made["kernel"])) == pytest.approx((2 / 768) ** 0.5, rel=0.02)
  assert 0.97 / 16 < float(jnp.max(jnp.abs(made["bias"]))) <= 1 / 16
  assert "tokens" not in made


# Cost.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inserted(Method):
  """Deep prompts as whole tokens of their block, dropped behind it."""

  kinds = (nn.Module,)

  collection: str = "inserted"
  sites: str = r".*/blocks_\d+"

  def init(self, site, key, params):
    return {"tokens": jax.random.normal(key, (50, site.x[-1]))}

  def call(self, site, v, params, layer, x, rng):
    tokens = jnp.repeat(v["tokens"][None], x.shape[0], axis=0)
    y = layer(params, jnp.concatenate([x[:, :1], tokens, x[:, 1:]], axis=1))
    return jnp.delete(y, slice(1, 51), axis=1)


def test_deep_prompts_cost_less_than_whole_tokens():
  model = models.ViT(5, width=96, depth=2, heads=3, patch=8, image_size=64)
  x = models.images(model, 4)
  table, flops = sites(model, x), {}
  for method in (VPT(length=50), Inserted()):
    tuned = Tuned(model, (method,), table)
    lowered = jax.jit(tuned.apply).lower(tuned.shapes, x)
    flops[type(method)] = lowered.cost_analysis()["flops"]
  plain = jax.jit(model.apply).lower({"params": tuned.shapes["params"]}, x)
  plain = plain.cost_analysis()["flops"]
  # 65 tokens become 115 in one form, and only the attention's keys and values in the other.
  assert plain < flops[VPT] < 1.15 * plain and flops[Inserted] > 1.7 * plain


# Where prompts sit, and what is refused.


def test_sites_can_leave_prompts_to_some_blocks():
  method = VPT(length=3, sites=r".*/blocks_1/attn")
  assert set(flat(attach((method,), "vit").shapes["vpt"])) == {"encoder/blocks_1/attn/tokens"}


def test_a_frame_is_the_same_deep_or_shallow():
  deep, shallow = (attach((VARIANTS[v],), "convnext") for v in ("deep", "shallow"))
  bound = [tuned.bound[0][0] for tuned in (deep, shallow)]
  assert bound[0] == dataclasses.replace(bound[1], deep=True) and bound[0].sites == ("stem",)
  assert deep.shapes == shallow.shapes
  framed = [called(VARIANTS[v], "stem", images("convnext"), name="convnext")[0]
            for v in ("deep", "shallow")]
  assert framed[0].shape == (3, 22, 22, 3)
  np.testing.assert_array_equal(*framed)


@pytest.mark.parametrize("options, message", [
  ({"length": 0}, "VPT: length=0; it must be at least 1"),
  ({"project": -1}, "VPT: project=-1; it must be at least 0"),
  ({"dropout": 1.0}, r"VPT: dropout=1.0; it must lie in \[0, 1\)"),
  ({"start": "xavier"}, r"VPT: start='xavier'; it must be one of \('vpt', 'noah'\)"),
  ({"pool": "cls"}, r"VPT: pool='cls'; it must be one of \('image', 'official'\)"),
])
def test_invalid_options(options, message):
  with pytest.raises(ValueError, match=message):
    VPT(**options)


@pytest.mark.parametrize("name, options, message", [
  ("vit", {"sites": ".*/mlp"}, "VPT: `sites` selects no stem, attn, where prompts would act"),
  ("vit", {"sites": ".*/attn", "deep": False}, "VPT: `sites` selects no stem, encoder, stages_0"),
  ("vit", {"sites": ".*/attn", "pool": "official"}, "selects no encoder/blocks_1, where prompts"),
  ("vit", {"sites": ".*/attn", "project": 4}, "VPT: project=4 is a layer at a ViT's `encoder`"),
  ("swin", {"project": 4}, "VPT: project=4 is a layer at a ViT's `encoder`"),
  ("swin", {"shared": True}, "VPT: shared=True is for deep prompts of blocks of one width"),
  ("convnext", {"shared": True}, "VPT: shared=True is for deep prompts of blocks of one"),
  ("vit", {"shared": True, "deep": False}, "VPT: shared=True is for deep prompts of blocks of one"),
])
def test_options_that_do_not_fit_the_model(name, options, message):
  with pytest.raises(ValueError, match=message):
    attach((VPT(**options),), name)


PAIR = (VPT(length=3), VPT(length=2, deep=False, collection="more"))


@pytest.mark.parametrize("name, methods, place", [
  ("swin", PAIR, "stages_0/blocks_0/attn"),
  ("swin", PAIR[::-1], "stages_0/blocks_0/attn"),
  ("swin", (PAIR[1], VPT(deep=False)), "stages_0"),
  ("convnext", PAIR, "stem"),
  ("vit", (PAIR[0], VPT(collection="more")), "encoder/blocks_0/attn"),
])
def test_prompts_on_top_of_prompts_are_refused_by_their_place(name, methods, place):
  tuned = attach(methods, name)
  with pytest.raises(ValueError, match=f"^VPT: {place} gets prompts from another VPT, too: keep o"):
    jax.eval_shape(tuned.apply, tuned.shapes, images(name))


@pytest.mark.parametrize("methods", [
  PAIR, pytest.param(PAIR[::-1], marks=pytest.mark.slow)], ids=["deep_first", "shallow_first"])
def test_deep_and_shallow_prompts_go_together_on_a_vit(methods):
  """Shallow prompts are then like registers, tokens without a position, and read the deep ones."""
  v = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables(methods, "vit"))
  params = {**v["params"], "reg_tokens": v["more"]["encoder"]["tokens"][None]}
  model = dataclasses.replace(MODELS["vit"], registers=2)
  deep = [v["vpt"]["encoder"][f"blocks_{i}"]["attn"]["tokens"] for i in range(2)]
  x = np.asarray(images("vit"), np.float64)
  expected = np.stack([literal.vit(model, params, image, deep) for image in x])
  without = np.stack([literal.vit(MODELS["vit"], params, image, deep) for image in x])
  assert_moved(expected, without)
  np.testing.assert_allclose(in_float64(methods, "vit"), expected, rtol=0, atol=1e-11)


def test_a_scan_keeps_no_last_block():
  with pytest.raises(ValueError, match="VPT: shared=True is for .* take shared=False"):
    attach((VPT(shared=True),), "vit", loop="scan")
  with pytest.raises(ValueError, match="VPT: pool='official' makes the last block another one"):
    attach((VARIANTS["deep_official"],), "vit", loop="scan")


@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
@pytest.mark.parametrize("variant", ["deep", "shallow"])
def test_prompts_do_not_merge(name, variant):
  methods = (VARIANTS[variant],)
  with pytest.raises(ValueError, match="VPT at .* is no change of weights: it can neither be merg"):
    attach(methods, name).merge(variables(methods, name))
