"""Whole runs in one process: what they leave behind, and how they go on."""

import json

import jax
import numpy as np
import pytest

import peft_jax
from peft_jax import data, safetensors
from peft_jax.train import checkpoint, log, loop
from peft_jax.train import step as steps
from peft_jax.tree import flat
from peft_jax.tuned import join

OPTIONS = {"methods": ("ssf",), "merge": True, "ema": 0.9, "log.tensorboard": True}


def run(config, workdir):
  return loop.run(config, workdir, jax.devices()[:1])


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
  """(config, folder, result) of a run that was never interrupted."""
  config = tiny(OPTIONS)
  workdir = tmp_path_factory.mktemp("runs") / "finished"
  return config, workdir, run(config, workdir)


SAME = ("adapter.safetensors", "merged.safetensors", "metrics.jsonl", "parameters.txt")


def test_a_run_leaves_everything_behind(finished):
  config, workdir, result = finished
  names = {path.name for path in workdir.iterdir()}
  assert names >= {*SAME, "config.json", "result.json", "progress.jsonl", "checkpoints"}
  assert json.loads((workdir / "config.json").read_text())["methods"] == ["ssf"]
  assert json.loads((workdir / "result.json").read_text()) == result
  rows = log.rows(workdir / "metrics.jsonl")
  assert [r["step"] for r in rows if "train_loss" in r] == [8, 16, 24, 32, 40]
  evaluations = [r for r in rows if "val200_accuracy" in r]
  assert [(r["step"], r["epoch"]) for r in evaluations] == [(20, 1), (40, 2)]
  assert result["val200_accuracy"] == evaluations[-1]["val200_accuracy"]
  best = max(r["val200_accuracy"] for r in evaluations)
  assert result["best_epoch_val200_accuracy"] == best
  assert not any("second" in key for row in rows for key in row)
  assert rows[0]["train_loss"] > rows[-2]["train_loss"]
  assert result["parameters"]["trained"] == sum(result["parameters"][g] for g in ("head", "ssf"))
  assert 0 < result["merged_max_difference"] < 1e-4
  assert result["versions"]["jax"] == jax.__version__


def test_the_adapter_file_gives_the_accuracy_that_was_reported(finished):
  config, workdir, result = finished
  loaded = peft_jax.load(workdir / "adapter.safetensors")
  split = data.open(config.task, size=config.model.image_size).split("val200")
  logits = loaded.logits(split.images())
  assert int((logits.argmax(-1) == split.labels).sum()) == result["val200_correct"]


def test_the_merged_file_is_a_plain_backbone(finished):
  config, workdir, result = finished
  merged, _ = safetensors.read(workdir / "merged.safetensors")
  parts = loop.prepare(config)
  params = flat(join(parts.train, parts.frozen)["params"])
  assert merged.keys() == params.keys()
  kernel = "encoder/blocks_0/attn/q/kernel"
  assert abs(merged[kernel] - params[kernel]).max() > 1e-3


def test_a_finished_run_says_so_and_changes_nothing(finished, capsys):
  config, workdir, result = finished
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
  assert run(config, workdir) == result
  said = capsys.readouterr().out
  assert "is finished: val200 accuracy" in said and len(said.splitlines()) == 1
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_another_config_is_refused_with_the_differing_keys(finished, tiny):
  _, workdir, _ = finished
  with pytest.raises(ValueError) as caught:
    run(tiny({**OPTIONS, "optim.lr": 0.5, "seed": 4}), workdir)
  assert "optim.lr: 0.02 there, 0.5 now; seed: 0 there, 4 now" in str(caught.value)


def test_a_full_disk_loses_nothing_and_the_run_goes_on_to_the_same_bits(
  finished, tmp_path, on_a_full_disk, capsys
):
  config, reference, result = finished
  on_a_full_disk(run, config, tmp_path)
  assert not (tmp_path / "result.json").exists()
  assert log.rows(tmp_path / "metrics.jsonl")[-1]["step"] > 15
  capsys.readouterr()
  again = run(config, tmp_path)
  assert "going on from the checkpoint of step 15 of 40" in capsys.readouterr().out
  for name in SAME:
    assert (tmp_path / name).read_bytes() == (reference / name).read_bytes(), name
  assert again["trained_sha256"] == result["trained_sha256"]


VIEWED = {
  "methods": ("ssf",),
  "data.view": "random_resized_crop",
  "data.rand_augment": "rand-m9-mstd0.5-inc1",
  "data.erasing": 0.25,
  "data.mixup": 0.8,
  "data.cutmix": 1.0,
  "label_smoothing": 0.1,
}


@pytest.mark.slow
def test_random_views_are_the_same_bits_after_a_restart(tiny, tmp_path, on_a_full_disk):
  config = tiny(VIEWED)
  whole = run(config, tmp_path / "whole")
  on_a_full_disk(run, config, tmp_path / "stopped")
  again = run(config, tmp_path / "stopped")
  assert again["trained_sha256"] == whole["trained_sha256"]
  stopped, metrics = (tmp_path / name / "metrics.jsonl" for name in ("stopped", "whole"))
  assert stopped.read_bytes() == metrics.read_bytes()
  plain = run(tiny({"methods": ("ssf",)}), tmp_path / "plain")
  assert plain["trained_sha256"] != whole["trained_sha256"]


def test_a_first_step_that_diverges_is_not_saved(tiny, tmp_path):
  config = tiny({"optim.lr": 1e38, "checkpoint.every_steps": 1, "eval.every_epochs": 1})
  with pytest.raises(loop.NotFiniteError, match="at step 1; there is no checkpoint in"):
    run(config, tmp_path)
  assert not any((tmp_path / "checkpoints").iterdir())


def test_a_loss_that_is_not_finite_stops_the_run_before_a_bad_checkpoint(tiny, tmp_path):
  config = tiny({"optim.lr": 1e12, "checkpoint.every_steps": 1, "checkpoint.keep": 50})
  with pytest.raises(loop.NotFiniteError) as caught:
    run(config, tmp_path)
  said = str(caught.value)
  with checkpoint.open(tmp_path / "checkpoints", 50) as manager:
    good = max(manager.all_steps())
    parts = loop.prepare(config)
    like = steps.start(parts.train, parts.tx, config.ema)
    _, state, _ = checkpoint.restore(manager, like)
  assert f"not finite at step {good + 1}; the last good checkpoint is that of step {good}" in said
  assert "Lower optim.lr (now 1e+12)" in said and "\n" not in said
  assert int(state["bad"]) == -1 and np.isfinite(state["tally"]["loss"])
  assert not (tmp_path / "result.json").exists()


def test_weights_that_changed_since_are_refused(tiny, tmp_path, backbone):
  config = tiny({"checkpoint.every_steps": 4, "optim.epochs": 1})
  parts = loop.prepare(config)
  with checkpoint.open(tmp_path / "checkpoints", 1) as manager:
    meta = {"weights": "0" * 64, "data": parts.dataset.fingerprint()}
    checkpoint.save(manager, 4, steps.start(parts.train, parts.tx, config.ema), meta)
    checkpoint.wait(manager)
    with pytest.raises(ValueError, match="The weights changed since .* was begun"):
      loop.begin(config, tmp_path, parts, manager)


def test_a_folder_that_cannot_be_made_is_an_oserror(tiny, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="Not a directory"):
    run(tiny(), tmp_path / "file" / "run")


def test_splits_that_share_images_are_refused(tiny):
  with pytest.raises(ValueError, match="200 images of data.eval_split=val200 .* two of train800, "):
    loop.prepare(tiny({"data.train_split": "train800val200"}))


def test_default_folder_names_the_run(tiny):
  config = tiny({"methods": ("ssf", "lora"), "seed": 3})
  assert loop.default_workdir(config) == "runs/mini_digits-vit_test-ssf+lora-s3"


def test_pmap_on_eight_devices_gives_the_same_run(finished, tiny, tmp_path):
  _, workdir, _ = finished
  config = tiny({**OPTIONS, "merge": False, "parallel": "pmap", "optim.epochs": 1})
  loop.run(config, tmp_path)  # the first epoch of both has the same learning rate
  for mine, theirs in zip(
    log.rows(tmp_path / "metrics.jsonl"), log.rows(workdir / "metrics.jsonl"), strict=False
  ):
    if mine["step"] in (8, 16):
      assert mine["step"] == theirs["step"]
      np.testing.assert_allclose(mine["train_loss"], theirs["train_loss"], rtol=1e-4)
      assert abs(mine["train_accuracy"] - theirs["train_accuracy"]) < 0.01
  assert json.loads((tmp_path / "result.json").read_text())["hardware"]["devices"] == 8
