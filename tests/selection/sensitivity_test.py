"""From scores to methods: units and their costs, budgets, and the tuple that is told."""

import dataclasses
import importlib.util
import pathlib

import numpy as np
import pytest

from peft_jax import models, safetensors
from peft_jax.count import count
from peft_jax.methods import SPT, VPT, Adapter, DoRA, LoRA
from peft_jax.selection import sensitivity
from peft_jax.selection.roles import roles
from peft_jax.sites import sites
from peft_jax.tree import flat
from peft_jax.tuned import Tuned

path = pathlib.Path(__file__).parents[1] / "methods/layers.py"
spec = importlib.util.spec_from_file_location("layers", path)
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

MATRICES = r".*/(attn/(q|k|v|proj)|mlp/fc[12])"


def test_the_units_of_each_method_and_what_they_cost():
  """ViT-B/16; spt_structured's table of costs."""
  table = layers.by_shapes("vit_base_patch16_224")[2]
  lora = sensitivity.units(LoRA(rank=8), table)
  assert len(lora) == 72 and "patch_embed" not in lora
  q, fc1 = "encoder/blocks_3/attn/q", "encoder/blocks_3/mlp/fc1"
  assert lora[q] == (12_288, (f"{q}/kernel",)) and lora[fc1] == (30_720, (f"{fc1}/kernel",))
  adapter = sensitivity.units(Adapter(sites=MATRICES, parallel=("proj",)), table)
  assert adapter.keys() == lora.keys() and (adapter[q][0], adapter[fc1][0]) == (13_064, 52_232)
  branches = sensitivity.units(Adapter(), table)
  assert len(branches) == 12 and branches["encoder/blocks_3/mlp"] == (
    13_064, (f"{fc1}/kernel", "encoder/blocks_3/mlp/fc2/kernel"))
  prompts = sensitivity.units(VPT(length=10), table)
  attn = tuple(f"encoder/blocks_3/attn/{name}/kernel" for name in ("q", "k", "v", "proj"))
  assert len(prompts) == 12 and prompts["encoder/blocks_3/attn"] == (7680, attn)
  assert sensitivity.units(LoRA(rank=8, rank_pattern=("q=2",)), table)[q][0] == 3072
  assert sensitivity.units(LoRA(sites=".*/q"), table).keys() == {
    f"encoder/blocks_{i}/attn/q" for i in range(12)}


@pytest.mark.parametrize("placed, sentence", [
  (LoRA(sites=".*/attn/(q|k|v)", share=("q", "k", "v")), "each site alone, which LoRA: share="),
  (VPT(deep=False), "prompts of each block's own"),
  (VPT(shared=True), "prompts of each block's own"),
  (VPT(pool="official"), "prompts of each block's own"),
  (LoRA(sites="patch_embed"), "LoRA acts at none of the matrices that may be chosen"),
  (Adapter(sites=("encoder/blocks_0/mlp", "encoder/blocks_0/mlp/fc1")), "one holds another"),
])
def test_what_cannot_be_placed_is_refused(placed, sentence):
  table = layers.by_shapes("vit_base_patch16_224")[2]
  with pytest.raises(ValueError, match=f"^SPT.*{sentence}"):
    sensitivity.units(placed, table)


class Config:
  seed = 3


BACKBONES = {
  "vit": models.ViT(5, width=24, depth=2, heads=3, patch=8, image_size=16, layer_scale=0.5),
  "swin": models.Swin(5, width=8, depths=(2, 1), heads=(2, 4), window=3, image_size=16),
  "convnext": models.ConvNeXt(5, (6, 8), (1, 2), image_size=16, layer_scale=0.5),
}
PLACED = {
  "lora": LoRA(rank=2, alpha_pattern=("q=3",), rank_pattern=("fc2=1",)),
  "dora": DoRA(rank=2),
  "adapter": Adapter(width=2, sites=r".*(q|k|v|proj|fc[12])", parallel=("proj",)),
  "vpt": VPT(length=2),
  "nothing": None,
}


def chosen(method, placed, model, budgets=()):
  """(table, scores, {budget: Allocation}) by random scores."""
  table = sites(model, models.images(model))
  params = layers.drawn(Tuned(model, (), table).shapes["params"], 1)
  found = sensitivity.scores(method, model, params, table, Config)
  return table, found, sensitivity.allocations(method, placed, table, found, budgets)


@pytest.mark.parametrize("backbone, name", [
  *(("vit", name) for name in PLACED), ("swin", "lora"), ("swin", "vpt"), ("convnext", "dora")])
def test_what_is_told_trains_what_was_allocated(backbone, name):
  """Also where a field of the placed method speaks of a layer that did not get it."""
  model, placed = BACKBONES[backbone], PLACED[name]
  method = SPT(score="random", budget=0.1, alpha=40.0)
  table, found, made = chosen(method, placed, model)
  (allocation,) = made.values()
  if placed:
    own = sensitivity.units(placed, table)
    matrices = [leaf for leaf, role in roles(table).items() if role == "matrix"]
    assert {leaf for _, leaves in own.values() for leaf in leaves} <= set(matrices)
  places = sensitivity.entries(method, table, allocation)
  methods = sensitivity.told(method, placed, places, allocation.whole, allocation.structured)
  assert len(methods) == (1 if placed is None else 2) and places
  turned = dict(reversed(places.items()))  # a file has an order of its own
  assert methods == sensitivity.told(
    method, placed, turned, allocation.whole, allocation.structured)
  counted = count(Tuned(model, methods, table))
  assert counted["trained"] - counted["head"] == allocation.total
  fewer = dataclasses.replace(method, norm_entries=False)
  more = allocation.entries | {"norm/scale": np.zeros(1, np.int32)}
  left = sensitivity.entries(fewer, table, dataclasses.replace(allocation, entries=more))
  assert left.keys() == {path for path in more if "norm" not in path.split("/")[-2]}


def test_one_module_alone_leaves_out_what_speaks_of_others():
  adapter = sensitivity.placed_at(PLACED["adapter"], ("encoder/blocks_0/attn/q",))
  assert adapter.parallel == () and adapter.sites == ("encoder/blocks_0/attn/q",)
  lora = sensitivity.placed_at(PLACED["lora"], ("encoder/blocks_0/attn/q",))
  assert lora.rank_pattern == () and lora.alpha_pattern == ("q=3",)


def test_budgets_tau_and_the_class_token():
  model, lora = BACKBONES["vit"], PLACED["lora"]
  method = SPT(score="random")
  table, found, made = chosen(method, lora, model, (0.05, 0.1, 3000))
  totals = [made[budget].total for budget in (0.05, 0.1, 3000)]
  assert totals == sorted(totals) and made[0.1].tau > made[0.05].tau
  (given,) = chosen(dataclasses.replace(method, tau=77), lora, model)[2].values()
  assert given.tau == 77 == sum(given.counts.values())
  frozen = dataclasses.replace(method, tau=77, tokens=False)
  (other,) = sensitivity.allocations(frozen, lora, table, found).values()
  assert given.total - other.total == 24  # the width
  alone = dataclasses.replace(method, tau=77, unstructured=False, beta=0.0, alpha=0.0)
  (nothing,) = sensitivity.allocations(alone, lora, table, found).values()
  assert sensitivity.told(alone, lora, nothing.entries, nothing.whole, nothing.structured) == (
    dataclasses.replace(alone, collection="", chosen=()),)


class Split:
  labels = 100 + np.arange(50)

  def images(self, places):  # each image tells its label
    return self.labels[places]

  def __len__(self):
    return 50


def test_images_are_drawn_by_the_seed_with_their_labels(monkeypatch):
  model = BACKBONES["vit"]
  table = sites(model, models.images(model))
  params = layers.drawn(Tuned(model, (), table).shapes["params"], 1)

  def seen(method, seed):
    config = type("Config", (), {"seed": seed})
    return sensitivity.scores(method, model, params, table, config, Split())

  def given(model, params, paths, images, labels, config, **options):
    np.testing.assert_array_equal(images(np.arange(len(labels))), labels)
    np.testing.assert_array_equal(images(np.array([2, 0])), labels[[2, 0]])
    return set(paths), labels.tolist(), options

  monkeypatch.setattr(sensitivity, "squared_gradients", given)
  paths, drawn, options = seen(SPT(num_samples=20, group_size=4, drop_path=0.1), 0)
  assert paths == roles(table).keys() and len(set(drawn)) == 20
  assert options == {
    "group_size": 4, "drawn": False, "drop_path": 0.1, "devices": None, "show": None}
  assert seen(SPT(num_samples=20), 0)[1] == drawn != seen(SPT(num_samples=20), 1)[1]
  _, every, options = seen(SPT(score="fisher"), 0)
  assert sorted(every) == Split.labels.tolist() and every[:20] == drawn and options["drawn"]


def test_scores_of_a_file(tmp_path):
  model = BACKBONES["vit"]
  table = sites(model, models.images(model))
  rng = np.random.default_rng(0)
  params = Tuned(model, (), table).shapes["params"]
  given = {path: rng.standard_normal(leaf.shape, np.float32) for path, leaf in flat(params).items()}
  file = str(tmp_path / "scores.safetensors")
  safetensors.write(file, given)
  method = SPT(score="file", scores=file, tau=50)
  found = sensitivity.scores(method, model, params, table, Config)
  assert found.keys() == roles(table).keys()
  for path, leaf in found.items():
    np.testing.assert_array_equal(leaf, np.abs(given[path]))
  del given["norm/scale"]
  safetensors.write(file, given)
  with pytest.raises(ValueError, match="^SPT: the given scores have none for 'norm/scale'"):
    sensitivity.scores(method, model, params, table, Config)


def test_scores_that_need_no_images():
  model = BACKBONES["vit"]
  table = sites(model, models.images(model))
  params = layers.drawn(Tuned(model, (), table).shapes["params"], 1)
  found = sensitivity.scores(SPT(score="magnitude"), model, params, table, Config)
  assert found.keys() == roles(table).keys()
  for path, leaf in found.items():
    np.testing.assert_array_equal(leaf, np.abs(flat(params)[path]))
  one, again = (sensitivity.scores(SPT(score="random"), model, params, table, Config)
                for _ in range(2))
  assert all(np.array_equal(one[path], again[path]) for path in found)
  assert not np.array_equal(one["encoder/blocks_0/attn/q/kernel"],
                            one["encoder/blocks_0/attn/k/kernel"])
