"""A run whose method chooses what it trains: its selection is a file, and decides the run."""

import shutil

import jax
import numpy as np
import pytest

import peft_jax
from peft_jax import data, methods, models, safetensors
from peft_jax.count import count
from peft_jax.models import unstack_blocks
from peft_jax.selection import file as selection_file
from peft_jax.selection import places as selected
from peft_jax.sites import sites
from peft_jax.train import choosing, loop, shard
from peft_jax.tree import flat, nest

GPS = {"methods": ("gps",), "optim.epochs": 1, "checkpoint.every_steps": 10}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("gps")
  config = tiny(GPS)
  return config, workdir, loop.run(config, workdir)


def test_the_run_says_what_it_chose_and_its_adapter_works_without_it(finished):
  config, workdir, result = finished
  places, about = selection_file.read(workdir / "selection.safetensors")
  assert about["task"] == config.task and about["method"]["score"] == "contrast"
  assert sum(rows.size for rows in places.values()) == result["parameters"]["gps"]
  loaded = peft_jax.load(workdir / "adapter.safetensors")
  split = data.open(config.task, size=config.model.image_size).split("val200")
  logits = loaded.logits(split.images())
  assert int((logits.argmax(-1) == split.labels).sum()) == result["val200_correct"]
  adapter = flat(loaded.variables["gps"])
  for path, rows in places.items():
    site = path.removesuffix("/kernel")
    np.testing.assert_array_equal(np.ravel(adapter[f"{site}/index"]), np.ravel(rows))
  difference, largest = loaded.merging_error(split.images(range(8)))
  assert difference < 1e-5 * largest


def test_every_entry_that_was_not_chosen_stays_as_it_was(finished):
  config, workdir, _ = finished
  loaded = peft_jax.load(workdir / "adapter.safetensors")
  base, merged = flat(loop.prepare(config, workdir).frozen["params"]), flat(loaded.merged())
  moved = 0
  for path, rows in selection_file.read(workdir / "selection.safetensors")[0].items():
    changed = np.ravel(np.asarray(merged[path]) != np.asarray(base[path]))
    assert not np.delete(changed, np.ravel(rows)).any()
    moved += changed.sum()
  assert moved > 0.9 * loaded.variables["gps"]["patch_embed"]["value"].size


def test_a_run_with_checkpoints_keeps_the_selection_it_was_begun_with(finished, tiny, tmp_path,
                                                                     monkeypatch):
  config, workdir, _ = finished
  there = tmp_path / "run"
  shutil.copytree(workdir, there)
  (there / "result.json").unlink()
  places, header = selection_file.read(there / "selection.safetensors")
  monkeypatch.setattr(selected, "choose", None)
  assert loop.run(config, there)["steps"] == 20
  (there / "result.json").unlink()
  first = next(iter(places))
  selection_file.save(there / "selection.safetensors", places | {first: places[first][:, ::-1]},
                      header)
  with pytest.raises(ValueError, match="^The selection changed since"):
    loop.run(config, there)
  (there / "selection.safetensors").unlink()
  with pytest.raises(ValueError, match="is gone, and the checkpoints there are of what it chose"):
    loop.run(config, there)


def test_what_was_chosen_otherwise_is_not_used_again(finished, tiny, tmp_path):
  _, workdir, _ = finished
  kept = workdir / "selection.safetensors"
  seen = []
  for normalize in ("imagenet", "inception"):
    there = tmp_path / normalize
    there.mkdir()
    shutil.copy(kept, there)
    loop.prepare(tiny({**GPS, "gps.score": "magnitude", "data.normalize": normalize}), there)
    seen.append(selection_file.read(there / "selection.safetensors")[1]["preprocessing"])
  assert seen[0] != seen[1]


def test_a_selection_is_used_again_and_refused_where_it_means_nothing(finished, tiny, tmp_path,
                                                                     monkeypatch):
  _, workdir, _ = finished
  path = str(workdir / "selection.safetensors")
  places, about = selection_file.read(path)
  again = tiny({**GPS, "selection": path, "seed": 3})
  with monkeypatch.context() as patched:  # another seed would choose other entries
    patched.setattr(selected, "choose", None)
    parts = loop.prepare(again)
  index = flat(parts.frozen["gps"])
  for kernel, rows in places.items():
    site = kernel.removesuffix("/kernel")
    np.testing.assert_array_equal(np.ravel(index[f"{site}/index"]), np.ravel(rows))
  with pytest.raises(ValueError, match="was made with k=1, this run has 2"):
    loop.prepare(tiny({**GPS, "selection": path, "gps.k": 2}))
  selection_file.save(tmp_path / "other.safetensors", places, about | {"base": "0" * 64})
  with pytest.raises(ValueError, match="made on weights with fingerprint 0000000000000000"):
    loop.prepare(tiny({**GPS, "selection": str(tmp_path / "other.safetensors")}))
  with pytest.raises(ValueError, match="none of the methods bias chooses"):
    loop.prepare(tiny({"methods": ("bias",), "selection": path}))
  safetensors.write(tmp_path / "no.safetensors", {"a": np.zeros(1)})
  with pytest.raises(ValueError, match="is no selection"):
    loop.prepare(tiny({**GPS, "selection": str(tmp_path / "no.safetensors")}))


def test_what_could_be_chosen_is_named_as_in_the_unrolled_model():
  def kernels(name, loop_form):
    model = models.create(name, num_classes=3, loop=loop_form)
    return choosing.kernels_of(methods.GPS(), sites(model, models.images(model)))

  found = kernels("swin_test", "python")
  assert found["stages_0/blocks_1/mlp/fc1/kernel"] == (12, 48) and len(found) == 26
  assert kernels("vit_test", "scan_remat") == kernels("vit_test", "python")


@pytest.mark.slow
def test_what_is_chosen_depends_on_the_seed_alone_not_on_the_devices(tiny):
  def chosen(count, **overrides):
    config = tiny({**GPS, "batch_size": 200, **overrides})
    parallel = shard.parallel("jit", jax.devices()[:count])
    parts = loop.prepare(config, None, parallel)
    return {path: np.asarray(rows) for path, rows in flat(parts.frozen["gps"]).items()}

  one, other = chosen(1), chosen(1, seed=1)
  total = sum(rows.size for rows in one.values())
  for devices in (2, 8):
    more = chosen(devices)
    same = sum(int((one[path] == more[path]).sum()) for path in one)
    # Sums over several devices are rounded in another order, which may swap two equal scores.
    assert same >= total - 1
  assert sum(int((one[path] != other[path]).sum()) for path in one) > 0.05 * total


@pytest.mark.slow
@pytest.mark.parametrize("level, score", [
  ("net", "contrast"), ("layer", "cross_entropy"), ("neuron", "squares")])
def test_every_level_and_score_trains(tiny, tmp_path, level, score):
  result = loop.run(tiny({**GPS, "gps.level": level, "gps.score": score}), tmp_path)
  k_each = loop.prepare(tiny({**GPS, "gps.score": "random"})).tuned
  assert result["parameters"]["gps"] == count(k_each)["gps"]
  assert peft_jax.load(tmp_path / "adapter.safetensors").tuned.methods[0].level == level
  assert result["steps"] == 20


@pytest.mark.slow
def test_a_scan_trains_what_the_unrolled_run_chooses(tiny):
  plain = flat(loop.prepare(tiny(GPS)).frozen["gps"])
  scan = flat(loop.prepare(tiny({**GPS, "model.loop": "scan_remat"})).frozen["gps"])
  assert scan["encoder/blocks/attn/q/index"].shape[0] == 2
  total = same = 0
  for path, rows in flat(unstack_blocks(nest(scan))).items():
    total += rows.size
    same += int((rows == plain[path]).sum())
  assert same >= total - 1  # recomputed sums may swap two equal scores
