"""What batch norms keep, through steps, devices, checkpoints, files and merged weights."""

import jax
import numpy as np
import pytest

import peft_jax
from peft_jax import adapter_file, data, safetensors
from peft_jax.train import checkpoint, loop
from peft_jax.tree import flat, nest

NAMES = {f"batch_stats/head/norm_{i}/{name}" for i in range(2) for name in ("mean", "var")}
MLP = {"methods": ("mlp",), "optim.lr": 3e-3, "ema": 0.5}


def test_a_run_without_them_has_the_state_it_always_had(prepared):
  _, state, _ = prepared()
  assert set(state) == {"train", "opt", "tally", "step", "bad"}
  assert not any("stats" in name for name in checkpoint.named(state))
  _, state, _ = prepared(MLP)
  assert set(state) == {"train", "opt", "ema", "stats", "tally", "step", "bad"}
  assert {name for name in checkpoint.named(state) if "stats" in name} == {
    f"stats/{name}" for name in NAMES}


def first_hidden(parts, images):
  """What the first norm reads, [B, D], from the features of the model without a head."""
  params = dict(parts.frozen["params"])
  model = parts.tuned.model.clone(num_classes=0)
  x = np.asarray(model.apply({"params": params}, data.normalize(images, "inception")), np.float64)
  layer = parts.train["params"]["head"]["hidden_0"]
  return np.maximum(x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)


def test_a_step_moves_them_a_tenth_of_the_way(prepared, digits):
  parts, state, take = prepared(MLP)
  (batch,) = digits(parts, 16, 1)
  new, frozen = take(state, [batch])
  assert flat(new["stats"]).keys() == NAMES
  trees = [new["train"], new["ema"], frozen, new["opt"][1].mu]
  assert not any(path.startswith("batch_stats") for tree in trees for path in flat(tree))
  h, found = first_hidden(parts, batch["image"]), new["stats"]["batch_stats"]["head"]["norm_0"]
  assert abs(h).max() > 0.5
  np.testing.assert_allclose(found["mean"], 0.1 * h.mean(0), rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(found["var"], 0.9 + 0.1 * h.var(0), rtol=1e-3, atol=1e-5)


def test_devices_of_a_mesh_share_them_and_those_of_pmap_average_their_own(prepared, digits):
  parts, state, take = prepared(MLP)
  (batch,) = digits(parts, 16, 1)
  one, _ = take(state, [batch])
  assert float(abs(flat(one["stats"])["batch_stats/head/norm_1/mean"]).max()) > 1e-3
  many, _ = take(state, [batch], "jit", 8)
  for this, other in ((one["stats"], many["stats"]), (one["opt"][1].mu, many["opt"][1].mu)):
    for path, leaf in flat(this).items():
      np.testing.assert_allclose(flat(other)[path], leaf, rtol=1e-3, atol=1e-5, err_msg=path)
  apart, _ = take(state, [batch], "pmap", 8)
  h = first_hidden(parts, batch["image"])
  own = apart["stats"]["batch_stats"]["head"]["norm_0"]
  np.testing.assert_allclose(own["mean"], 0.1 * h.mean(0), rtol=1e-3, atol=1e-5)
  var = h.reshape(8, 2, -1).var(1).mean(0)
  np.testing.assert_allclose(own["var"], 0.9 + 0.1 * var, rtol=1e-3, atol=1e-5)
  assert int(apart["bad"]) == -1 and int(apart["step"]) == 1


def run(config, workdir):
  return loop.run(config, workdir, jax.devices()[:1])


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
  """(config, folder, result) of a run that was never interrupted."""
  # SSF hardly moves: statistics lag behind a backbone that does.
  config = tiny(MLP | {"methods": ("ssf,mlp",), "optim.group_lr.ssf": 1e-5, "merge": True})
  workdir = tmp_path_factory.mktemp("runs") / "finished"
  return config, workdir, run(config, workdir)


def test_a_run_that_was_stopped_ends_in_the_same_bits(finished, tmp_path, on_a_full_disk, capsys):
  config, whole, result = finished
  on_a_full_disk(run, config, tmp_path)
  capsys.readouterr()
  again = run(config, tmp_path)
  assert "going on from the checkpoint of step 15 of 40" in capsys.readouterr().out
  for name in ("adapter.safetensors", "merged.safetensors", "metrics.jsonl", "parameters.txt"):
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
  assert again["trained_sha256"] == result["trained_sha256"]


def test_the_adapter_file_has_them_and_gives_the_accuracy_that_was_reported(finished, tmp_path):
  config, workdir, result = finished
  file = workdir / "adapter.safetensors"
  arrays, metadata = safetensors.read(file)
  assert {name for name in arrays if name.startswith("batch_stats")} == NAMES
  loaded = peft_jax.load(file)
  assert loaded.tuned.model.head_layers == 3 and set(loaded.variables) == {
    "params", "ssf", "batch_stats"}
  split = data.open(config.task, size=config.model.image_size).split("val200")
  logits = loaded.logits(split.images())
  assert int((logits.argmax(-1) == split.labels).sum()) == result["val200_correct"]
  assert 0.15 < result["val200_accuracy"]  # ten classes: they are not those of the start
  path = min(NAMES)
  for wrong, said in ((None, "holds nothing at"), (np.ones(7, np.float32), r"holds float32\[7\]")):
    changed = {name: wrong if name == path else leaf for name, leaf in arrays.items()}
    changed = {name: leaf for name, leaf in changed.items() if leaf is not None}
    safetensors.write(tmp_path / "a", changed, metadata)
    with pytest.raises(ValueError, match=rf"{said}.*{path}, .* need float32\[24\]"):
      peft_jax.load(tmp_path / "a")


def test_merged_weights_need_no_statistics(finished, tmp_path):
  config, workdir, result = finished
  assert 0 < result["merged_max_difference"] < 1e-4
  loaded = peft_jax.load(workdir / "adapter.safetensors")
  merged, _ = safetensors.read(workdir / "merged.safetensors")
  images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
  y = loaded.tuned.model.apply({"params": nest(merged)}, images)  # as the README says
  np.testing.assert_allclose(y, loaded.logits(images), rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match="no timm name for head/hidden_0/bias .*; only our own"):
    adapter_file.save_merged(tmp_path / "m.safetensors", nest(merged), loaded.header, timm=True)
  assert not list(tmp_path.iterdir())
