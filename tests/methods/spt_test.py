"""SPT: what its variables do to a kernel, its counts, and dense training as the oracle."""

import csv
import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from peft_jax import models, partition
from peft_jax.count import count
from peft_jax.methods import SPT, Adapter, LoRA, spt
from peft_jax.methods.entries import filled
from peft_jax.sites import sites
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned, join

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

OFFICIAL = pathlib.Path(__file__).parents[1] / "selection/spt_official.csv"
ROWS = list(csv.DictReader(OFFICIAL.open()))
NAMES = ("attn/q", "attn/k", "attn/v", "attn/proj", "mlp/fc1", "mlp/fc2")
NARROW = ("attn/norm/scale", "attn/norm/bias", "mlp/norm/scale", "mlp/norm/bias", "attn/q/bias",
          "attn/v/bias", "attn/proj/bias", "mlp/fc2/bias")


@pytest.mark.parametrize("form", ["entries", "kernel", "product"])
@pytest.mark.parametrize("layer", layers.LAYERS.values(), ids=layers.LAYERS)
def test_forms_agree(layer, form):
  layers.assert_forms_agree(SPT(chosen=("layer/kernel=5",), sites="layer", form=form), layer)


def test_values_are_added_to_the_kernels_entries():
  method = SPT(chosen=("layer/kernel=3",), sites="layer", tokens=False)
  tuned, variables, _ = layers.attach(method, *layers.LAYERS["dense"])
  start = tuned.init(jax.random.key(0))["spt"]["layer"]
  assert start["value"].tolist() == [0, 0, 0] and start["index"].dtype == jnp.int32
  own = {"value": jnp.array([1.0, -2.0, 4.0]), "index": jnp.array([0, 7, 29], jnp.int32)}
  kernel = variables["params"]["layer"]["kernel"]
  merged = tuned.merge({**variables, "spt": {"layer": own}})["layer"]["kernel"]
  expected = np.zeros(30, np.float32)
  expected[[0, 7, 29]] = 1, -2, 4
  np.testing.assert_allclose(merged - kernel, expected.reshape(6, 5), atol=1e-6)


# --- counts --------------------------------------------------------------------------------------


def told(row):
  """The tuple of an official allocation, in any blocks, and the total it lists."""
  number = {field: int(value) for field, value in row.items() if field not in ("kind", "task")}
  paths = tuple(f"encoder/blocks_{i}/{name}" for name in NAMES
                for i in range(number[name.partition("/")[2]]))
  modules = 8 * sum((1536, 1536, 1536, 1536, 3840, 3840)[NAMES.index(path.split("/", 2)[2])]
                    for path in paths)
  if row["kind"] == "adapter":
    outputs = (3072 if path.endswith("fc1") else 768 for path in paths)
    modules = sum(2 * 8 * width + 8 + width for width in outputs)
  wide = (number["structured"] - modules - 768 * number["whole"]) // (3072 - 768)
  narrow = [f"encoder/blocks_{i}/{name}" for i in range(12) for name in NARROW]
  whole = (*narrow[: number["whole"] - wide],
           *(f"encoder/blocks_{i}/mlp/fc1/bias" for i in range(wide)))
  chosen = (f"encoder/blocks_11/attn/q/kernel={number['unstructured'] - 9}",
            "encoder/blocks_3/attn/k/bias=9")
  exact = LoRA(rank=8, sites=paths)
  if row["kind"] == "adapter":
    parallel = ("proj",) if number["proj"] else ()
    exact = Adapter(width=8, act="gelu", parallel=parallel, sites=paths)
  return (SPT(chosen=chosen, whole=whole), exact), number["total"]


QUICK = [("lora", "cifar"), ("adapter", "sun397")]


@pytest.mark.parametrize("row", [
  pytest.param(row, id=f"{row['kind']}-{row['task']}",
               marks=() if (row["kind"], row["task"]) in QUICK else pytest.mark.slow)
  for row in ROWS])
def test_counts_are_those_of_the_released_allocations(row):
  model, _, table = layers.by_shapes("vit_base_patch16_224")
  methods, total = told(row)
  found = count(Tuned(model, methods, table))
  assert found["trained"] - found["head"] == total
  assert found["head"] == 76_900


def test_there_are_38_released_allocations():
  assert len(ROWS) == 38 and {(row["kind"], row["task"]) for row in ROWS} >= set(QUICK)


@pytest.mark.parametrize("placed, most", [
  (LoRA(rank=8), 1_449_216),
  pytest.param(Adapter(width=8, parallel=("proj",)), 1_532_736, marks=pytest.mark.slow)])
def test_the_most_that_can_be_trained(placed, most):
  model, _, table = layers.by_shapes("vit_base_patch16_224")
  paths = tuple(f"encoder/blocks_{i}/{name}" for i in range(12) for name in NAMES)
  whole = [f"encoder/blocks_{i}/{name}" for i in range(12)
           for name in (*NARROW, "attn/k/bias", "mlp/fc1/bias")]
  method = SPT(chosen=(), whole=(*whole, "norm/scale", "norm/bias"))
  found = count(Tuned(model, (method, dataclasses.replace(placed, sites=paths)), table))
  assert found["trained"] - found["head"] == most


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, sentence", [
  ({"budget": -1.0}, "^SPT: budget=-1.0; it must be at least 0"),
  ({"budget": float("nan")}, "^SPT: budget=nan"),
  ({"group_size": 0}, "^SPT: group_size=0; it must be at least 1"),
  ({"score": "contrast"}, "^SPT: score='contrast'; it must be one of"),
  ({"scores": "f"}, "^SPT: scores='f' is given, but score='squares'"),
  ({"drop_path": 1.0}, "^SPT: drop_path=1.0 is outside"),
  ({"chosen": ("q/kernel",)}, "^SPT: chosen has 'q/kernel', which is not of the form"),
  ({"chosen": ("q/kernel=0",)}, "^SPT: chosen has 'q/kernel=0'"),
  ({"form": "dense"}, "^SPT: form='dense'"),
])
def test_options_out_of_range_are_refused(wrong, sentence):
  with pytest.raises(ValueError, match=sentence):
    SPT(**wrong)


def test_what_has_not_been_chosen_or_is_of_another_model_is_told():
  model = models.ViT(4, **SMALL)
  table = sites(model, X)
  with pytest.raises(ValueError, match="^SPT: what it trains depends on the weights and the task"):
    Tuned(model, (SPT(),), table)
  with pytest.raises(ValueError, match="'encoder/blocks_9/attn/q/kernel' .* has no such leaf"):
    Tuned(model, (SPT(chosen=("encoder/blocks_9/attn/q/kernel=2",)),), table)
  with pytest.raises(ValueError, match="13 entries of 'norm/scale' .* has 12 entries there"):
    Tuned(model, (SPT(chosen=("norm/scale=13",)),), table)
  with pytest.raises(ValueError, match="no such leaf"):
    Tuned(model, (SPT(chosen=(), whole=("norm/gamma",)),), table)


def test_what_may_stand_behind_it():
  lora = LoRA()
  assert spt.behind(("spt", "lora"), (SPT(), lora)) == ("lora", lora)
  assert spt.behind(("lora", "spt"), (lora, SPT())) == ("", None)
  assert spt.behind(("lora",), (lora,)) == ("", None)
  with pytest.raises(ValueError, match="^SPT places the method behind it, one of .*, not gps"):
    spt.behind(("spt", "gps"), (SPT(), layers.Folded()))


# --- training, on every backbone ------------------------------------------------------------------

SMALL = dict(width=12, depth=2, heads=3, patch=4, image_size=8)
X = jax.random.normal(jax.random.key(5), (6, 8, 8, 3))


BACKBONES = {
  "vit": (models.ViT(4, **SMALL, layer_scale=0.5), X, {
    "encoder/blocks_0/attn/q/kernel": 7, "encoder/blocks_1/mlp/fc2/kernel": 3,
    "encoder/blocks_0/attn/norm/scale": 4, "encoder/blocks_1/mlp/fc1/bias": 5,
    "encoder/blocks_1/mlp/ls": 2,
  }, ("norm/bias", "encoder/blocks_0/attn/proj/bias"), ("encoder/blocks_1/attn/v",)),
  "swin": (models.Swin(4, width=8, depths=(2, 1), heads=(2, 4), window=2, image_size=16), None, {
    "stages_0/blocks_0/attn/q/kernel": 7, "stages_0/blocks_1/attn/rel_pos": 5,
    "stages_1/downsample/reduction/kernel": 6, "stages_1/blocks_0/mlp/norm/scale": 3,
  }, ("norm/bias", "stages_1/downsample/norm/scale"), ("stages_0/blocks_1/mlp/fc1",)),
  "convnext": (models.ConvNeXt(4, (6, 8), (1, 2), image_size=16, layer_scale=0.5), None, {
    "stages_0/blocks_0/dwconv/kernel": 7, "stages_1/downsample/conv/kernel": 6,
    "stages_1/blocks_0/fc1/kernel": 9, "stages_1/blocks_1/gamma": 3,
    "stages_0/blocks_0/norm/scale": 2,
  }, ("norm/bias", "stages_0/blocks_0/fc2/bias"), ("stages_1/blocks_1/fc2",)),
}


def prepared(backbone, form="auto"):
  """(tuned with LoRA placed, its variables at chosen places, images, {leaf path: places})."""
  model, x, sizes, whole, paths = BACKBONES[backbone]
  if x is None:
    x = jax.random.normal(jax.random.key(6), (6, 16, 16, 3))
  table = sites(model, x)
  chosen = tuple(f"{path}={n}" for path, n in sizes.items())
  method = SPT(chosen=chosen, whole=whole, form=form, delta=form != "mask")
  tuned = Tuned(model, (method, LoRA(rank=2, sites=paths)), table)
  params = layers.drawn(tuned.shapes["params"], 1)
  rng = np.random.default_rng(3)
  places = {path: np.sort(rng.permutation(flat(params)[path].size)[:n]).astype(np.int32)
            for path, n in sizes.items()}
  variables = {"params": params, **tuned.init(jax.random.key(1), params)}
  return tuned, filled(tuned, variables, "spt", places), x, places


def trained_steps(tuned, variables, x, steps=5):
  """The variables after steps of AdamW with decay on what decays, by training's own masks."""
  train, frozen = tuned.split(variables)
  masks = partition.masks(tuned, frozen)
  decay = jax.tree.map(lambda vector: not vector, partition.vectors(tuned, train))
  tx = optax.adamw(1e-2, weight_decay=0.1, mask=decay)
  labels = jnp.arange(6) % 4

  def loss(train):
    logits = tuned.apply(join(train, frozen), x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @jax.jit
  def step(train, opt):
    with jax.numpy_dtype_promotion("standard"):
      updates, opt = tx.update(jax.grad(loss)(train), opt, train)
    updates = flat(updates)
    updates |= {path: jnp.where(mask, updates[path], 0.0) for path, mask in masks.items()}
    return optax.apply_updates(train, nest(updates)), opt

  opt = tx.init(train)
  for _ in range(steps):
    train, opt = step(train, opt)
  return join(train, frozen)


@pytest.mark.parametrize("backbone", [
  "vit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("swin", "convnext"))])
def test_only_what_was_chosen_moves_and_it_merges(backbone):
  tuned, variables, x, places = prepared(backbone)
  model, apply = jax.jit(tuned.model.apply), jax.jit(tuned.apply)
  plain = model({"params": variables["params"]}, x)
  np.testing.assert_allclose(apply(variables, x), plain, rtol=1e-5, atol=1e-5)
  after = trained_steps(tuned, variables, x)
  y, merged = apply(after, x), tuned.merge(after)
  assert float(jnp.abs(y - plain).max()) > 1e-2
  again = model({"params": merged}, x)
  np.testing.assert_allclose(again, y, rtol=1e-5, atol=1e-5 * float(jnp.abs(y).max()))
  merged, start = flat(merged), flat(variables["params"])
  whole, (lora,) = tuned.methods[0].whole, tuned.methods[1].sites
  for path, leaf in start.items():
    changed = np.ravel(np.asarray(merged[path] != leaf))
    if path.startswith("head/") or path in (*whole, "cls_token", f"{lora}/kernel"):
      assert changed.mean() > 0.5, path
    else:
      assert sorted(np.flatnonzero(changed)) == list(places.get(path, ())), path


@pytest.mark.slow
@pytest.mark.parametrize("form", ["entries", "kernel", "product", "mask"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_form_trains_alike(backbone, form):
  """Under weight decay, too, which acts on no single entry."""
  tuned, variables, x, _ = prepared(backbone)
  expected = flat(tuned.merge(trained_steps(tuned, variables, x, 3)))
  tuned, variables, x, places = prepared(backbone, form)
  found = flat(tuned.merge(trained_steps(tuned, variables, x, 3)))
  start = flat(variables["params"])
  for path, leaf in expected.items():
    np.testing.assert_allclose(found[path], leaf, atol=2e-5, err_msg=path)
  assert max(float(jnp.abs(expected[path] - start[path]).max()) for path in places) > 1e-2
