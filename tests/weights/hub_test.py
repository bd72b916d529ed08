"""Names on the hub: from a cache in its layout, from its package, or one sentence on what to do."""

import functools
import sys
import types

import jax
import numpy as np
import pytest

from peft_jax import models, safetensors, weights
from peft_jax.tree import flat
from peft_jax.weights import hub, names, npz

KEY = jax.random.key(0)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPEC = "hf-hub:someone/vit"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  for name in ("HF_HUB_OFFLINE", "HF_HOME", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setitem(sys.modules, hub.PACKAGE, None)  # as if it were not installed
  return tmp_path / "hub"


@functools.cache
def tiny():
  model = models.create("vit_test", num_classes=0)
  return model, weights.load("random", model, key=KEY)[0]


def put(cache, repository="someone/vit", snapshot=COMMIT, refs=True, name="model.safetensors"):
  """A tiny model's weights as the hub's package leaves them: a blob, a link to it, a reference."""
  model, params = tiny()
  folder = cache / f"models--{repository.replace('/', '--')}"
  for part in ("blobs", f"snapshots/{snapshot}", "refs"):
    (folder / part).mkdir(parents=True)
  safetensors.write(folder / "blobs" / "new", names.to_timm(flat(params)))
  blob = folder / "blobs" / npz.sha256(folder / "blobs" / "new")
  (folder / "blobs" / "new").rename(blob)
  (folder / "snapshots" / snapshot / name).symlink_to(f"../../blobs/{blob.name}")
  if refs:
    (folder / "refs" / "main").write_text(snapshot)
  return model, params, blob


def test_what_is_cached_needs_neither_package_nor_network(cache):
  model, params, blob = put(cache)
  got, base = weights.load(SPEC, model, key=KEY)
  jax.tree.map(np.testing.assert_array_equal, got, params)
  assert base.name == SPEC and base.sha256 == blob.name
  assert base.source.endswith(f"models--someone--vit/snapshots/{COMMIT}/model.safetensors")
  assert weights.load(f"{SPEC}@{COMMIT}", model, key=KEY)[1].sha256 == blob.name


@pytest.mark.parametrize("spec", [
  "vit_base_patch16_224_in21k", "vit_base_patch16_224.augreg_in21k",
  "timm/vit_base_patch16_224.augreg_in21k", "hf_hub:timm/vit_base_patch16_224.augreg_in21k"])
def test_names_of_timm(cache, spec):
  put(cache, "timm/vit_base_patch16_224.augreg_in21k")
  assert hub.fetch(spec) == hub.cached("timm/vit_base_patch16_224.augreg_in21k")


def test_a_file_placed_by_hand_as_the_sentence_says(cache):
  with pytest.raises(FileNotFoundError) as error:
    weights.load(SPEC, models.create("vit_test", num_classes=0), key=KEY)
  sentence = str(error.value)
  assert "https://huggingface.co/someone/vit/resolve/main/model.safetensors" in sentence
  assert "its package is not installed (pip install 'peft_jax[hub]')" in sentence
  place = sentence.split("place it as ")[1].removesuffix(".")
  put(cache, snapshot="main", refs=False)
  assert str(hub.fetch(SPEC)) == place


def test_a_damaged_blob_is_named(cache):
  model, _, blob = put(cache)
  data = bytearray(blob.read_bytes())
  data[-1] ^= 1
  blob.write_bytes(data)
  with pytest.raises(ValueError, match="model.safetensors is damaged: its SHA-256"):
    weights.load(SPEC, model, key=KEY)


def fake(monkeypatch, download):
  monkeypatch.setitem(sys.modules, hub.PACKAGE, types.SimpleNamespace(hf_hub_download=download))


def test_the_package_fetches_what_is_not_cached(cache, monkeypatch):
  asked = []

  def download(repository, name, revision):
    asked.append((repository, name, revision))
    if name == "model.safetensors":
      raise KeyError("EntryNotFound")
    put(cache, name=name)
    return str(hub.cached(repository))

  fake(monkeypatch, download)
  assert hub.fetch("hf-hub:someone/vit@v1.0").name == "pytorch_model.bin"
  assert asked == [("someone/vit", "model.safetensors", "v1.0"),
                   ("someone/vit", "pytorch_model.bin", "v1.0")]


def test_no_network(cache, monkeypatch):
  def download(*args, **options):
    raise ConnectionError("no route\nto host")

  fake(monkeypatch, download)
  with pytest.raises(FileNotFoundError, match=r"failed \(ConnectionError: no route\). Download"):
    hub.fetch(SPEC)
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  fake(monkeypatch, lambda *a, **k: 1 / 0)
  with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set. Download"):
    hub.fetch(SPEC)


@pytest.mark.parametrize("spec", [
  "dinov3", "w.npz", "vit_base.safetensors", "hf-hub:", "hf-hub:a", "hf-hub:a/b/c", "hf-hub:../a",
  "hf-hub:a/..", "hf-hub:a/b@../c", "hf-hub:.a/b", "swin.pth"])
def test_other_words_are_no_names(spec):
  assert hub.parse(spec) is None


def test_a_reference_cannot_lead_out_of_the_cache(cache):
  put(cache)
  (cache / "models--someone--vit" / "refs" / "main").write_text("../../../secret")
  assert hub.cached("someone/vit") is None


def test_where_the_cache_is(monkeypatch, tmp_path):
  monkeypatch.delenv("HF_HUB_CACHE")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert hub.cache() == tmp_path / "huggingface" / "hub"
  monkeypatch.setenv("HF_HOME", str(tmp_path / "h"))
  assert hub.cache() == tmp_path / "h" / "hub"
