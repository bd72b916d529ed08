"""The laws every method keeps on every backbone and loop.

A method joins by one row: of METHODS; of WRAPPING, if it does not merge; of SCOPES, if it has no
variables of its own. A backbone joins by one row of BACKBONES; no law knows a method by name.
Everything is perturbed first, and a law about outputs asserts that they moved, so that no zero
start lets it pass. One long file, because all laws share one table and what they compile from it.
"""

import collections
import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from peft_jax import models, partition
from peft_jax.method import Method
from peft_jax.methods import (
  GPS,
  IA3,
  SAN,
  SPT,
  SSF,
  VPT,
  Adapter,
  AdaptFormer,
  Bias,
  DoRA,
  Full,
  Linear,
  LoRA,
  Norm,
  Partial,
)
from peft_jax.sites import NoSiteError, sites
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned, join


@dataclasses.dataclass(frozen=True)
class Row:
  """What the laws need to know of a tuple of methods.

  count: trained parameters on ViT-B/16, the head excluded.
  other: the same methods with another hyper-parameter.
  starts_equal: whether the docstrings promise that the tuned model starts as the backbone.
  zero: regular expression of the trained leaves whose gradient is zero by mathematics: what is
    added to all keys alike moves no softmax.
  needs: what a backbone's sites must have for the methods to find work.
  loops: regular expression of the loops in which the methods work.
  slow: whether all laws of this row are left to the slow suite.
  longer: regular expression of the modules that read more tokens than the backbone has.
  """

  methods: tuple[Method, ...]
  count: int
  other: tuple[Method, ...]
  starts_equal: bool = True
  zero: str = "none"
  needs: str = ".*"
  loops: str = ".*"
  slow: bool = False
  longer: str = "none"


lora, ssf, san = LoRA(rank=2, alpha=3.0), SSF(), SAN()
KEY_SHIFT = r"(ssf|san)/.*/k/shift"
# Most taps of a 7 x 7 convolution lie outside the 2 x 2 features of the last stage: there all that
# |W| chooses for its first block.
NO_TAP = r"params/.*/k/bias|gps/stages_1/blocks_0/dwconv/value"

# Entries of a kernel, of a norm's scale and of a bias; whole vectors; LoRA elsewhere.
SPT_CHOSEN = ("blocks_0/attn/q/kernel=7", "blocks_0/attn/norm/scale=3", "blocks_0/mlp/fc1/bias=5",
              "blocks_1/mlp/fc2/kernel=4", "blocks_1/mlp/norm/bias=2")
SPT_WHOLE = ("blocks_0/mlp/norm/scale", "blocks_1/attn/proj/bias")
spt = SPT(chosen=tuple(f"encoder/{path}" for path in SPT_CHOSEN),
          whole=tuple(f"encoder/{path}" for path in SPT_WHOLE))
spt_lora = LoRA(rank=2, sites=("encoder/blocks_0/attn/v", "encoder/blocks_1/mlp/fc1"))

METHODS = {
  "lora": Row((lora,), 334_848, (LoRA(rank=2, alpha=4.0),)),
  "lora_qkv": Row(
    (LoRA(rank=2, share=("q", "k", "v")),), 297_984, (LoRA(rank=2, alpha=4.0, share=("q", "v")),),
    needs=".*/attn/q",
  ),
  "ssf": Row((ssf,), 205_824, (SSF(sites=".*/mlp/.*"),), starts_equal=False, zero=KEY_SHIFT),
  "san_resize": Row((san,), 186_624, (SAN(proj_source="v_slice"),)),
  "san_base": Row((SAN(variant="base"),), 122_112, (SAN(variant="base", qkv_source="prev_fc2"),)),
  "san_base_recal": Row(
    (SAN(variant="base_recal"),), 177_408, (SAN(variant="base_recal", qkv_source="prev_fc2"),)
  ),
  "san_paper": Row(
    (SAN(variant="paper"),), 334_848, (SAN(variant="paper", qkv_source="stem"),), zero=KEY_SHIFT
  ),
  "san_nt": Row((SAN(mode="nt"),), 122_112, (SAN(mode="nt", shift=True),)),
  "san_sp": Row((SAN(mode="sp"),), 177_408, (SAN(mode="sp", proj_source="v_slice"),)),
  "ssf_lora": Row(
    (ssf, lora), 540_672, (SSF(), LoRA(rank=2)), starts_equal=False, zero=KEY_SHIFT
  ),
  "lora_ssf": Row(
    (lora, ssf), 540_672, (LoRA(rank=2), SSF()), starts_equal=False, zero=KEY_SHIFT
  ),
  "san_lora": Row((san, lora), 521_472, (SAN(mode="sp"), lora)),
  "lora_patterns": Row(
    (LoRA(rank=2, rank_pattern=("attn/proj=3",), alpha_pattern=("q=5",)),), 353_280,
    (LoRA(rank=2, rank_pattern=("attn/proj=3",), alpha_pattern=("q=6",)),), needs=".*/attn/q",
  ),
  "dora": Row((DoRA(rank=2, alpha=3.0),), 418_560, (DoRA(rank=2, alpha=4.0),)),
  "ia3": Row((IA3(),), 55_296, (IA3(inputs="none"),)),
  "gps": Row(
    (GPS(score="magnitude", k=2, form="entries"),), 251_136,
    (GPS(score="magnitude", k=2, form="kernel"),), zero=NO_TAP,
  ),
  "gps_product": Row(
    (GPS(score="magnitude", k=2, form="product", delta=True),), 251_136,
    (GPS(score="magnitude", k=2, form="product"),), zero=NO_TAP,
    needs="encoder/blocks_0/attn/q", loops="scan_remat", slow=True,
  ),
  "lora_gps": Row(
    (lora, GPS(score="random")), 502_272, (lora, GPS(score="random", biases=False)),
    zero=NO_TAP, needs="encoder/blocks_0/attn/q", loops="scan_remat", slow=True,
  ),
  "gps_lora": Row(
    (GPS(score="magnitude", biases=False), lora), 418_560,
    (GPS(score="magnitude", biases=False), LoRA(rank=2)), zero=NO_TAP,
    needs="encoder/blocks_0/attn/q", loops="remat", slow=True,
  ),
  "spt_lora": Row(
    (spt, spt_lora), 10_752 + 21 + 768 + 1_536, (dataclasses.replace(spt, tokens=False), spt_lora),
    needs="encoder/blocks_0/attn/q", loops="remat", slow=True,
  ),
  "ia3_lora_norm": Row(  # beside what is trained as it is
    (IA3(), LoRA(rank=2, sites=r"(.*/)?(attn/q|fc2)"), Norm()), 222_720,
    (IA3(), LoRA(rank=3, sites=r"(.*/)?(attn/q|fc2)"), Norm()),
    needs="encoder/blocks_0/attn/q", loops="python|scan_remat", slow=True,
  ),
}
adapter, adaptformer = Adapter(), AdaptFormer(width=16)
MATRICES = r".*/(attn/(q|k|v|proj)|mlp/fc[12])"

WRAPPING = {  # what no weights can do: these methods have a `call` and no `weights`
  "adapter": Row((adapter,), 156_768, (Adapter(act="gelu"),)),
  "adaptformer": Row((adaptformer,), 304_320, (AdaptFormer(width=16, scale=1.0),)),
  "vpt": Row(
    (VPT(length=3),), 27_648, (VPT(length=4),), starts_equal=False, longer=r".*/attn/(norm|k|v)"
  ),
  "vpt_shallow": Row(
    (VPT(length=3, deep=False),), 2_304, (VPT(length=4, deep=False),), starts_equal=False,
    needs=".*/attn/q",  # a ConvNeXt's frame is that of "vpt"
    slow=True, longer="encoder(/.*)?",
  ),
  "adapter_matrices": Row(
    (Adapter(sites=MATRICES, parallel=("proj",), initial="trunc_normal_both"),), 1_410_624,
    (Adapter(sites=MATRICES),), starts_equal=False, zero="adapter/.*/k/up_bias", needs=".*/attn/q",
    slow=True,
  ),
  "ssf_adapter": Row(
    (ssf, adapter), 362_592, (SSF(), Adapter(width=4)), starts_equal=False, zero=KEY_SHIFT,
    slow=True,
  ),
  "lora_adaptformer": Row(
    (lora, adaptformer), 639_168, (LoRA(rank=3), adaptformer), slow=True
  ),
}
SCOPES = {
  "full": Row((Full(),), 85_798_656, (Norm(), Bias()), zero=r"params/.*/k/bias"),
  "linear": Row((Linear(),), 0, (Bias(), Norm())),
  "bias": Row((Bias(),), 102_912, (Linear(), Bias()), zero=r"params/.*/k/bias"),
  "norm": Row((Norm(),), 38_400, (Linear(), Norm())),
  "bias_no_norms": Row(
    (Bias(norms=False),), 83_712, (Linear(), Bias(norms=False)), zero=r"params/.*/k/bias"
  ),
  "bias_rel_pos": Row(
    (Bias(rel_pos=True),), 102_912, (Linear(), Bias(rel_pos=True)), zero=r"params/.*/k/bias"
  ),
  "partial": Row(
    (Partial(),), 7_089_408, (Partial(k=2),), zero=r"params/.*/k/bias",
    loops="python|remat",  # a scan has no last block
  ),
}
TUNING = METHODS | WRAPPING
ROWS = TUNING | SCOPES

TINY = dict(num_classes=5, width=24, depth=2, heads=3, patch=8, image_size=16)
BACKBONES = {
  "vit": models.ViT(**TINY, layer_scale=0.5),
  "dinov2": models.ViT(**TINY, layer_scale=1e-5, registers=4, no_embed_class=True),
  "swin": models.Swin(5, width=8, depths=(2, 1), heads=(2, 4), window=3, image_size=16),
  "convnext": models.ConvNeXt(5, (6, 8), (1, 2), image_size=16, layer_scale=0.5),
}
LOOPS = ("python", "remat", "scan", "scan_remat")
# Of the other backbones some loops suffice; the stages of the last two cannot be scanned.
# What is not "python" is compared with it.
OTHERS = {"dinov2": ("remat", "scan"), "swin": ("python",), "convnext": ("remat",)}
# One row of every kind goes around a Swin's second loop, too (VPT's in its own tests).
MORE = {"swin": {name: ("remat",) for name in ("lora", "san_resize", "adapter")}}
X = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))

# LLVM's optimisations cost half of these tests' time and change no law.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TRACES = collections.Counter()


def perturbed(tree, seed):
  """Every leaf but those of places moved by N(0, 0.3^2): no zero, no one, no tiny layer scale."""
  rng = np.random.default_rng(seed)

  def move(leaf):
    if np.issubdtype(leaf.dtype, np.integer):
      return jnp.asarray(leaf)
    return jnp.asarray(leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32))

  return jax.tree.map(move, jax.device_get(tree))


@functools.cache
def backbone_params(backbone):
  shapes = jax.eval_shape(BACKBONES[backbone].init, jax.random.key(1), X)["params"]
  return perturbed(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes), 2)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def forward(model, params):
  return model.apply({"params": params}, X)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def outcome(tuned, variables, images):
  """(logits, gradient of their square sum with respect to what is trained)."""
  TRACES[tuned] += 1
  train, frozen = tuned.split(variables)

  def loss(train):
    y = tuned.apply(join(train, frozen), images)
    return jnp.sum(jnp.square(y)), y

  gradients, y = jax.grad(loss, has_aux=True)(train)
  return y, gradients


def attach(methods, backbone, loop="python"):
  model = dataclasses.replace(BACKBONES[backbone], loop=loop)
  return Tuned(model, methods, table(backbone, loop))


@functools.cache
def table(backbone, loop):
  return sites(dataclasses.replace(BACKBONES[backbone], loop=loop), X)


@functools.cache
def fresh(methods, backbone):
  """Variables as they start, on the backbone's perturbed parameters, in the python layout."""
  params = backbone_params(backbone)
  return {"params": params, **attach(methods, backbone).init(jax.random.key(3), params)}


@functools.cache
def moved(methods, backbone, loop="python", seed=4):
  """Variables away from their start, the same numbers for every loop."""
  start = fresh(methods, backbone)
  own = {c: tree for c, tree in start.items() if c != "params"}
  variables = {"params": start["params"], **perturbed(own, seed)}
  return models.stack_blocks(variables) if "scan" in loop else variables


@functools.cache
def ran(methods, backbone, loop="python", seed=4):
  return outcome(attach(methods, backbone, loop), moved(methods, backbone, loop, seed), X)


def assert_close(actual, expected, rtol=1e-5):
  """Relative to the largest entry, as a logit near zero has no digits of its own."""
  scale = float(jnp.max(jnp.abs(expected)))
  np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * scale)


def assert_moved(actual, base):
  assert float(jnp.max(jnp.abs(actual - base))) > 1e-2 * float(jnp.max(jnp.abs(base)))


def cases(rows, quick, loops=None):
  """(row, backbone, loop) for all, or the first `loops` of each backbone's; slow rows and what
  `quick(i, backbone, loop)` leaves out are slow.
  """
  params = []
  for i, name in enumerate(rows):
    for backbone in BACKBONES:
      if not any(re.fullmatch(rows[name].needs, path) for path in table(backbone, "python")):
        continue
      there = OTHERS.get(backbone, LOOPS) + MORE.get(backbone, {}).get(name, ())
      for loop in [loop for loop in there if re.fullmatch(rows[name].loops, loop)][:loops]:
        is_quick = quick(i, backbone, loop) and not rows[name].slow
        marks = () if is_quick else pytest.mark.slow
        label = f"{name}-{backbone}-{loop}"
        params.append(pytest.param(rows[name], backbone, loop, marks=marks, id=label))
  return pytest.mark.parametrize("row, backbone, loop", params)


def one_loop_each(i, backbone, loop):
  """Every row runs unrolled, every second one in scan_remat, which is two loops at once."""
  return backbone == "vit" and (loop == "python" or (loop == "scan_remat" and i % 2 == 0))


# The row of METHODS that is in the quick suite on these backbones.
STAGED_ROWS = {"convnext": "ssf", "swin": "san_resize"}


def two_backbones(i, backbone, loop):
  """The same, and remat or scan on the other backbone for the rows between."""
  other = i % 2 == 1 and (backbone, loop) == ("dinov2", LOOPS[1 + i // 2 % 2])
  staged = list(METHODS)[i] == STAGED_ROWS.get(backbone) and loop in OTHERS[backbone]
  return other or staged or one_loop_each(i, backbone, loop)


def some(rows, quick):
  """The rows named in `quick` are in the quick suite, the others are slow."""
  marked = [
    pytest.param(row, id=name, marks=() if name in quick else pytest.mark.slow)
    for name, row in rows.items()
  ]
  return pytest.mark.parametrize("row", marked)


def each(rows):
  return some(rows, [name for name, row in rows.items() if not row.slow])


# Laws 1, 2 and 7: what a method does, in every form of the model.


@cases(METHODS, two_backbones)
def test_merged_weights_reproduce_the_tuned_model_in_every_loop(row, backbone, loop):
  y, _ = ran(row.methods, backbone, loop)
  assert_moved(y, forward(BACKBONES[backbone], backbone_params(backbone)))
  variables = moved(row.methods, backbone, loop)
  merged = attach(row.methods, backbone, loop).merge(variables)
  assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, variables["params"])
  if "scan" in loop:
    merged = models.unstack_blocks(merged)
  # The plain python loop is the reference of all four loops, which are therefore equal too.
  assert_close(y, forward(BACKBONES[backbone], merged))


@cases(WRAPPING, one_loop_each)
def test_what_does_not_merge_is_equal_in_every_loop(row, backbone, loop):
  y, _ = ran(row.methods, backbone, loop)
  assert_moved(y, forward(BACKBONES[backbone], backbone_params(backbone)))
  assert_close(y, ran(row.methods, backbone)[0])


@cases(ROWS, one_loop_each)
def test_gradients_are_equal_in_every_loop_and_vanish_only_by_mathematics(row, backbone, loop):
  _, gradients = ran(row.methods, backbone, loop)
  gradients = flat(models.unstack_blocks(gradients) if "scan" in loop else gradients)
  largest = max(float(jnp.max(jnp.abs(g))) for g in gradients.values())
  vanished = {p for p, g in gradients.items() if float(jnp.max(jnp.abs(g))) < 1e-6 * largest}
  assert vanished == {path for path in gradients if re.fullmatch(row.zero, path)}
  expected = flat(ran(row.methods, backbone)[1])
  assert gradients.keys() == expected.keys()
  for path in gradients.keys() - vanished:
    assert_close(gradients[path], expected[path], rtol=2e-4)


@cases(ROWS, one_loop_each, loops=1)
def test_an_image_is_answered_alike_at_any_place_among_any_others(row, backbone, loop):
  y, _ = ran(row.methods, backbone, loop)
  few = np.array([5, 2, 7])
  images = jnp.concatenate([X[few], -X[3:]])
  tuned, variables = attach(row.methods, backbone, loop), moved(row.methods, backbone, loop)
  among_others, _ = outcome(tuned, variables, images)
  assert_moved(among_others[3:], y[3:])
  assert_close(among_others[:3], y[few])


@each(TUNING)
def test_vmap_over_two_adapters(row):
  tuned, params = attach(row.methods, "vit"), backbone_params("vit")
  pair = [ran(row.methods, "vit", "python", seed)[0] for seed in (4, 5)]
  assert_moved(*pair)
  adapters = [
    {c: tree for c, tree in moved(row.methods, "vit", "python", seed).items() if c != "params"}
    for seed in (4, 5)
  ]
  adapters = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
  y = jax.vmap(lambda own: tuned.apply({"params": params, **own}, X))(adapters)
  assert_close(y, jnp.stack(pair))


@some(TUNING, ("lora", "ssf", "san_resize", "ssf_lora", "adaptformer"))
def test_eight_devices_give_the_numbers_of_one(row):
  tuned, variables = attach(row.methods, "vit"), moved(row.methods, "vit")
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
  variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
  y = jax.jit(tuned.apply, compiler_options=QUICK)(variables, x)
  assert len(y.sharding.device_set) == 8
  assert_close(y, ran(row.methods, "vit")[0])


@some(TUNING, ("lora", "san_resize"))
def test_pmap_gives_the_numbers_of_one_device(row):
  tuned, variables = attach(row.methods, "vit"), moved(row.methods, "vit")
  y = jax.pmap(tuned.apply, in_axes=(None, 0))(variables, X[:, None])
  assert_close(y[:, 0], ran(row.methods, "vit")[0])


# Law 3: the start.


@functools.cache
def untuned(backbone):
  """Op by op, as the start is computed, whose bits are compared."""
  return BACKBONES[backbone].apply({"params": backbone_params(backbone)}, X)


@pytest.mark.parametrize("backbone", [
  "vit", *(pytest.param(name, marks=pytest.mark.slow) for name in list(BACKBONES)[1:])])
@each(TUNING)
def test_the_start_is_the_backbone_where_the_docstring_says_so(row, backbone):
  if not any(re.fullmatch(row.needs, path) for path in table(backbone, "python")):
    pytest.skip("no site for this method")
  y = attach(row.methods, backbone).apply(fresh(row.methods, backbone), X)
  assert np.array_equal(y, untuned(backbone)) == row.starts_equal


# Law 5: what is frozen stays.


def adamw(labels):
  """AdamW with decay for every group but "freeze", which gets no update at all."""
  groups = dict.fromkeys(jax.tree.leaves(labels), optax.adamw(1e-2, weight_decay=0.1))
  return optax.multi_transform({**groups, "freeze": optax.set_to_zero()}, labels)


def step(tx, gradients, leaves):
  with jax.numpy_dtype_promotion("standard"):  # optax divides by an integer step
    updates, _ = tx.update(gradients, tx.init(leaves), leaves)
    return optax.apply_updates(leaves, updates)


def assert_only_trained_leaves_changed(after, before, labels):
  after, before, labels = flat(after), flat(before), flat(labels)
  assert after.keys() == before.keys() == labels.keys()
  changed = {p for p in after if not np.array_equal(after[p], before[p])}
  assert changed == {path for path, label in labels.items() if label != "freeze"}


@cases(ROWS, one_loop_each)
def test_one_step_leaves_frozen_leaves_bit_identical(row, backbone, loop):
  tuned, variables = attach(row.methods, backbone, loop), moved(row.methods, backbone, loop)
  labels = tuned.labels(variables)
  train, frozen = tuned.split(variables)
  groups = {path: label for path, label in flat(labels).items() if path in flat(train)}
  assert "freeze" not in groups.values()
  _, gradients = ran(row.methods, backbone, loop)
  stepped = join(step(adamw(nest(groups)), gradients, train), frozen)
  assert_only_trained_leaves_changed(stepped, variables, labels)


@each(ROWS)
def test_the_labels_alone_freeze_as_well_as_the_split(row):
  tuned, variables = attach(row.methods, "vit"), moved(row.methods, "vit")
  labels = tuned.labels(variables)
  stepped = step(adamw(labels), jax.tree.map(jnp.ones_like, variables), variables)
  assert_only_trained_leaves_changed(stepped, variables, labels)


# Law 6: shapes and types.


SHAPES = [
  pytest.param(dtype, loop, marks=() if quick else pytest.mark.slow, id=f"{dtype}-{loop}")
  for dtype in ("bfloat16", "float32")
  for loop in LOOPS
  for quick in [dtype == "bfloat16" and loop in ("python", "scan_remat")]
]


@pytest.mark.parametrize("dtype, loop", SHAPES)
@each(TUNING)
def test_every_module_returns_the_shape_and_type_it_returns_untuned(row, dtype, loop):
  if not re.fullmatch(row.loops, loop) and row.methods[0].chooses:
    pytest.skip("chosen for another loop")
  model = dataclasses.replace(BACKBONES["dinov2"], loop=loop, dtype=dtype)
  variables = moved(row.methods, "dinov2", loop)
  tuned = Tuned(model, row.methods, table("dinov2", loop))

  def outputs(apply):
    seen = {}

    def spy(next_fun, inputs, named, context):
      y = next_fun(*inputs, **named)
      if context.method_name == "__call__":
        seen["/".join(context.module.path)] = (y.shape, y.dtype)
      return y

    with nn.intercept_methods(spy):
      jax.eval_shape(apply, variables, X)
    return seen

  plain = outputs(lambda variables, x: model.apply({"params": variables["params"]}, x))
  assert plain[next(path for path in plain if path.endswith("attn/q"))][1] == dtype
  found = outputs(tuned.apply)
  assert found.keys() == plain.keys()
  for path, (shape, kind) in found.items():
    expected, longer = plain[path], re.fullmatch(row.longer, path)
    assert kind == expected[1] and (longer or shape == expected[0]), path


# Law 8: initial values are a method's own.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(Method):
  """A neighbour that draws at the same sites."""

  collection: str = "noise"

  def init(self, site, key, params):
    return {"a": jax.random.normal(key, site.fan_out)}


@each(TUNING)
def test_initial_values_do_not_depend_on_other_methods_and_sites(row):
  key, params = jax.random.key(7), backbone_params("vit")
  alone = flat(attach(row.methods, "vit").init(key, params))
  joined = flat(attach((Noise(), *row.methods, Noise(collection="more")), "vit").init(key, params))
  assert alone.keys() < joined.keys()
  first = lambda path: "blocks_0/" in path  # noqa: E731  (shared siblings stay together)
  fewer = {}
  if any(map(first, alone)):  # what acts before the blocks has no other choice of sites
    own = [method for method in row.methods if method.collection]
    few = tuple(
      dataclasses.replace(method, sites=tuple(filter(first, places)))
      for method, (_, places) in zip(own, attach(row.methods, "vit").bound, strict=True)
    )
    fewer = flat(attach(few, "vit").init(key, params))
    assert fewer.keys() < alone.keys()
  other = flat(attach(row.methods, "vit").init(jax.random.key(8), params))
  assert other.keys() == alone.keys()
  for path, value in alone.items():
    np.testing.assert_array_equal(value, joined[path])
    np.testing.assert_array_equal(value, fewer.get(path, value))


# Law 9: compilation.


@each(ROWS)
def test_two_calls_compile_once_and_another_hyper_parameter_again(row):
  variables = moved(row.methods, "vit")
  first, _ = outcome(attach(row.methods, "vit"), variables, X)
  equal = attach(tuple(dataclasses.replace(method) for method in row.methods), "vit")
  before = TRACES[equal], outcome._cache_size()
  assert before[0] >= 1
  y, _ = outcome(equal, perturbed(variables, 6), X)
  assert_moved(y, first)
  assert (TRACES[equal], outcome._cache_size()) == before
  other = attach(row.other, "vit")
  before = TRACES[other]
  outcome.trace(other, moved(row.other, "vit"), X)
  assert other != equal and TRACES[other] == before + 1


# Law 10: errors.


@each(WRAPPING)
def test_what_does_not_merge_says_which_method_does_not(row):
  wrapping = "|".join(type(method).__name__ for method in row.methods if method.weights is None)
  with pytest.raises(ValueError, match=f"^({wrapping}) at .* can neither be merged"):
    attach(row.methods, "vit").merge(moved(row.methods, "vit"))


@each(TUNING)
def test_a_pattern_that_matches_nothing_is_an_error(row):
  lost = dataclasses.replace(row.methods[0], sites="encoder/block/.*")
  with pytest.raises(NoSiteError, match=r"'encoder/block/\.\*' selects none of the \d+ sites"):
    attach((lost, *row.methods[1:]), "vit")


@each(TUNING)
def test_missing_foreign_and_misshapen_variables_are_errors(row):
  tuned, variables = attach(row.methods, "vit"), moved(row.methods, "vit")
  collection = row.methods[0].collection
  own = flat(variables[collection])
  path = next(iter(own))
  without = {c: tree for c, tree in variables.items() if c != collection}
  with pytest.raises(ValueError, match=f"The variable {collection}/.* is missing"):
    tuned.apply(without, X)
  for wrong, message in (
    ({**own, path: jnp.ones((*own[path].shape, 2))}, r"is \(.*\); this .* need \(.*\)"),
    ({p: leaf for p, leaf in own.items() if p != path}, f"{path} is missing; this model"),
    ({**own, "encoder/blocks_9/attn/q/a": own[path]}, "need no such variable"),
  ):
    for use in (lambda v: tuned.apply(v, X), tuned.merge, tuned.check):
      with pytest.raises(ValueError, match=message):
        use({**variables, collection: nest(wrong)})


# Law 11: sizes.


@functools.cache
def base_model():
  """ViT-B/16 by shapes: (model, params, table of sites)."""
  model = models.create("vit_base_patch16_224", num_classes=100)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  return model, params, sites(model, images)


@each(ROWS)
def test_trained_parameters_are_the_papers_number(row):
  model, params, places = base_model()
  tuned = Tuned(model, row.methods, places)
  variables = {"params": params, **jax.eval_shape(tuned.init, jax.random.key(0), params)}
  train, frozen = tuned.split(variables)
  sizes = {path: leaf.size for path, leaf in flat(train).items()}
  sizes |= {path: places.size for path, places in partition.partly(tuned, frozen).items()}
  assert sum(n for path, n in sizes.items() if path.startswith("params/head/")) == 76_900
  assert sum(sizes.values()) - 76_900 == row.count
