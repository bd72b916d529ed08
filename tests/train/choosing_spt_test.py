"""A run with SPT: what it chose and placed is a file, and decides the run."""

import dataclasses

import numpy as np
import pytest

import peft_jax
from peft_jax import data, safetensors
from peft_jax.account import account
from peft_jax.count import count
from peft_jax.methods import SPT, LoRA
from peft_jax.selection import file as selection_file
from peft_jax.selection import sensitivity
from peft_jax.selection.roles import roles
from peft_jax.train import choosing, loop, shard
from peft_jax.tree import flat

SMALL = {"optim.epochs": 1, "checkpoint.every_steps": 10, "spt.budget": 700.0}
SPT_LORA = {**SMALL, "methods": ("spt", "lora"), "lora.rank": 2, "lora.alpha": 2.0,
            "lora.dropout": 0.1}
MATRICES = r".*/(attn/(q|k|v|proj)|mlp/fc[12])"


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("spt")
  config = tiny(SPT_LORA)
  return config, workdir, loop.run(config, workdir)


def test_the_run_says_what_it_chose_and_its_adapter_works_without_it(finished):
  config, workdir, result = finished
  places, header = selection_file.read(workdir / "selection.safetensors")
  loaded = peft_jax.load(workdir / "adapter.safetensors")
  spt, lora = loaded.tuned.methods
  assert type(spt) is SPT and type(lora) is LoRA and (lora.rank, lora.dropout) == (2, 0.1)
  assert spt.sizes == {path: rows.size for path, rows in places.items()} and spt.whole
  assert [m["method"] for m in header["methods"]] == ["spt", "lora"]
  assert tuple(header["methods"][1]["sites"]) == lora.sites
  assert sum(header["counts"].values()) > sum(spt.sizes.values())  # modules replaced some
  trained = result["parameters"]["trained"] - result["parameters"]["head"]
  assert 0.8 * 700 < trained < 1.2 * 700
  split = data.open(config.task, size=config.model.image_size).split("val200")
  logits = loaded.logits(split.images())
  assert int((logits.argmax(-1) == split.labels).sum()) == result["val200_correct"]
  difference, largest = loaded.merging_error(split.images(range(8)))
  assert difference < 1e-5 * largest


def test_what_was_not_chosen_stays_as_it_was(finished):
  config, workdir, _ = finished
  loaded = peft_jax.load(workdir / "adapter.safetensors")
  places, _ = selection_file.read(workdir / "selection.safetensors")
  spt, lora = loaded.tuned.methods
  base = flat(loop.opened(config).params)
  merged, moved = flat(loaded.merged()), 0
  anything = {*spt.whole, "cls_token", *(f"{path}/kernel" for path in lora.sites)}
  for path, leaf in base.items():
    if path in anything or path.startswith("head/"):
      assert not np.array_equal(merged[path], leaf), path
      continue
    changed = np.flatnonzero(np.ravel(np.asarray(merged[path]) != np.asarray(leaf)))
    assert set(changed) <= set(np.ravel(places.get(path, ())).tolist()), path
    moved += len(changed)
  # A key's bias has no gradient; what else was chosen has moved.
  assert moved == sum(rows.size for rows in places.values()) > 0


def test_a_selection_is_used_again_without_scoring(finished, tiny, monkeypatch):
  config, workdir, _ = finished
  told = peft_jax.load(workdir / "adapter.safetensors").tuned.methods

  def refuse(*args, **kwargs):
    raise AssertionError("scored again")

  monkeypatch.setattr(sensitivity, "scores", refuse)
  assert loop.prepare(config, workdir).tuned.methods == told  # as a restart does
  path = str(workdir / "selection.safetensors")
  given = {**SPT_LORA, "selection": path}
  parts = loop.prepare(tiny({**given, "seed": 3}))
  assert parts.tuned.methods == told
  index = flat(parts.frozen["spt"])
  for leaf, rows in selection_file.read(path)[0].items():
    name = f"{leaf.rpartition('/')[0]}/index" if leaf.endswith("/kernel") else f"{leaf}_index"
    np.testing.assert_array_equal(index[name], rows)
  other = loop.prepare(tiny({**given, "lora.dropout": 0.0, "spt.form": "kernel"})).tuned.methods
  assert other == (dataclasses.replace(told[0], form="kernel"),
                   dataclasses.replace(told[1], dropout=0.0))


@pytest.mark.parametrize("change, sentence", [
  ({"lora.rank": 3}, "made with lora.rank=2, this run has 3"),
  ({"spt.alpha": 3.0}, "made with alpha=10.0, this run has 3.0"),
  ({"spt.budget": 710.0}, "made with budget=700.0, this run has 710.0"),
  ({"lora.sites": ".*/fc1"}, "made with lora.sites="),
  ({"methods": ("spt", "dora")}, "was made with "),
  ({"methods": ("spt",)}, "made with lora.rank=2, this run has None"),
  ({"methods": ("gps",)}, "made with method='spt', this run has 'gps'"),
])
def test_a_selection_by_another_rule_is_refused(finished, tiny, change, sentence):
  _, workdir, _ = finished
  path = str(workdir / "selection.safetensors")
  with pytest.raises(ValueError, match=sentence):
    loop.prepare(tiny({**SPT_LORA, "selection": path, **change}))


def test_a_selection_of_other_weights_is_refused(finished, tiny, tmp_path):
  _, workdir, _ = finished
  places, header = selection_file.read(workdir / "selection.safetensors")
  path = tmp_path / "other.safetensors"
  selection_file.save(path, places, header | {"base": "0" * 64})
  with pytest.raises(ValueError, match="made on weights with fingerprint 0000000000000000"):
    loop.prepare(tiny({**SPT_LORA, "selection": str(path)}))


def test_it_is_explained_from_its_selection(finished, tiny):
  _, workdir, result = finished
  path = str(workdir / "selection.safetensors")
  found = account(tiny({**SPT_LORA, "selection": path}))
  assert found.trained == result["parameters"]["trained"]
  assert found.tuned.methods == peft_jax.load(workdir / "adapter.safetensors").tuned.methods
  for methods in (("spt", "lora"), ("spt",)):
    with pytest.raises(ValueError, match="^What spt trains depends .*--config.selection=FILE"):
      account(tiny({**SPT_LORA, "methods": methods}))
  with pytest.raises(ValueError, match="^What gps trains depends .*--config.selection=FILE"):
    account(tiny({"methods": ("gps",), "gps.level": "net"}))
  with pytest.raises(ValueError, match="made with lora.rank=2"):
    account(tiny({**SPT_LORA, "selection": path, "lora.rank": 1}))


@pytest.mark.parametrize("change, sentence", [
  ({"methods": ("spt", "gps")}, "^methods has spt and gps, which both choose"),
  ({"methods": ("spt", "ssf")}, "^SPT places the method behind it, .*, not ssf"),
  ({"methods": ("spt", "adapter"), "merge": True}, "^merge=True, but adapter is no change"),
  ({"methods": ("spt", "vpt"), "merge": True}, "^merge=True, but vpt is no change"),
])
def test_what_cannot_run_is_refused_before_it_starts(tiny, change, sentence):
  with pytest.raises(ValueError, match=sentence):
    tiny({**SMALL, **change})


def test_a_scan_is_refused(tiny):
  with pytest.raises(ValueError, match="a scan holds all at .*take model.loop='python'"):
    loop.prepare(tiny({**SPT_LORA, "model.loop": "scan"}))


def test_several_budgets_come_from_one_scoring(tiny):
  config = tiny(SPT_LORA)
  opened = loop.opened(config)
  method = SPT(**dict(config.spt))
  about = selection_file.about(method, "spt", config, opened.base, opened.dataset,
                               opened.train_split)
  found = choosing.for_budgets(
    config, method, about, shard.parallel("jit"), opened.train_split, opened.model, opened.params,
    opened.table, budgets=(400, 1200.0))
  assert list(found) == [400, 1200.0]
  for budget, (places, header) in found.items():
    own = tiny({**SPT_LORA, "spt.budget": float(budget)})
    assert header["method"] == choosing.rule(own, SPT(**dict(own.spt)))
    trained = choosing.told(own, places, header)
    parts = peft_jax.Tuned(opened.model, trained, opened.table)
    counted = count(parts)
    assert abs(counted["trained"] - counted["head"] - budget) < 0.25 * budget


def test_scores_may_be_the_users_own(tiny, tmp_path):
  given = {**SPT_LORA, "spt.score": "file", "spt.scores": str(tmp_path / "scores.safetensors")}
  opened = loop.opened(tiny(SPT_LORA))
  own = flat(opened.params)
  scores = {path: np.zeros(own[path].shape, np.float32) for path in roles(opened.table)}
  scores["norm/scale"][:3] = -1, 0.5, 2.0
  scores["encoder/blocks_1/attn/v/kernel"][4, 7] = 1.5
  safetensors.write(given["spt.scores"], scores)
  places, header = choice(tiny({**given, "spt.tau": 4, "spt.beta": 0.0, "spt.alpha": 0.0}), opened)
  assert {path: rows.tolist() for path, rows in places.items()} == {
    "norm/scale": [0, 1, 2], "encoder/blocks_1/attn/v/kernel": [4 * 24 + 7]}
  assert sum(header["counts"].values()) == 4
  with pytest.raises(ValueError, match="needs spt.scores=FILE"):
    loop.prepare(tiny(given | {"spt.scores": ""}))
  with pytest.raises(ValueError, match="^SPT: scores='x' is given, but score='squares'"):
    SPT(scores="x")


def choice(config, opened):
  """(places, header) of a config's SPT."""
  method = SPT(**dict(config.spt))
  about = selection_file.about(method, "spt", config, opened.base, opened.dataset,
                               opened.train_split)
  return choosing.chosen(config, method, about, shard.parallel("jit"), opened.train_split,
                         opened.model, opened.params, opened.table)


SPREAD = {"spt.score": "random", "spt.alpha": 100.0}  # modules and entries, without trained weights
RUNS = {
  "adapter": {"methods": ("spt", "adapter"), "adapter.sites": MATRICES, "adapter.width": 2,
              "adapter.parallel": ("proj",), "adapter.act": "gelu", "spt.score": "fisher"},
  "vpt": {"methods": ("spt", "vpt"), "vpt.length": 2},
  "alone": {"methods": ("spt",), "spt.group_size": 1, "spt.num_samples": 100, "merge": True},
  "mask": {"methods": ("spt", "lora"), "lora.rank": 2, "spt.form": "mask", "spt.delta": False,
           "optim.weight_decay": 0.1, "ema": 0.9},
  "swin": {"methods": ("spt", "lora"), "lora.rank": 2, "weights": "random",
           "model.name": "swin_test", **SPREAD},
  "convnext": {"methods": ("spt", "lora"), "lora.rank": 1, "weights": "random",
               "model.name": "convnext_test", **SPREAD},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run(tiny, tmp_path, name):
  config = tiny({**SMALL, **RUNS[name]})
  result = loop.run(config, tmp_path)
  loaded = peft_jax.load(tmp_path / "adapter.safetensors")
  split = data.open(config.task, size=config.model.image_size).split("val200")
  logits = loaded.logits(split.images())
  assert int((logits.argmax(-1) == split.labels).sum()) == result["val200_correct"]
  places, header = selection_file.read(tmp_path / "selection.safetensors")
  assert bool(places) == config.spt.unstructured
  assert len(header["methods"]) == (1 if name == "alone" else 2)
  assert isinstance(loaded.tuned.methods[0], SPT)
  assert (tmp_path / "merged.safetensors").exists() == config.merge
  assert count(loaded.tuned)["trained"] == result["parameters"]["trained"]
