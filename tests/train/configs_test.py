"""Every config of configs/ takes two steps and is evaluated, on a model of one block."""

import functools
import pathlib
import re

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from peft_jax import count, methods, models, weights
from peft_jax.models import presets
from peft_jax.sites import sites
from peft_jax.train import config as config_lib
from peft_jax.train import loop
from peft_jax.tuned import Tuned

# By method: CIFAR-100's and ImageNet's, which make the same program, follow each other.
CONFIGS = sorted(
  (pathlib.Path(__file__).parents[2] / "configs").glob("*.py"),
  key=lambda path: path.stem.partition("_")[::-1],
)
RECIPES = ("vtab", "fgvc", "cifar100", "imagenet")


@pytest.fixture(scope="module")
def block(tmp_path_factory):
  """A file of weights for the model vit_one; programs compiled meanwhile are kept on disk."""
  folder = tmp_path_factory.mktemp("configs")
  keep = {"compilation_cache_dir": str(folder), "persistent_cache_min_compile_time_secs": 0.0}
  before = {name: getattr(jax.config, f"jax_{name}") for name in keep}
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(presets.PRESETS, "vit_one", presets.plain(24, 1, 3, 8, 32))
    model = models.create("vit_one", num_classes=10)
    weights.save(folder / "one.npz", weights.load("random", model, key=jax.random.key(7))[0])
    for values in (keep, before):
      for name, value in values.items():
        jax.config.update(f"jax_{name}", value)
      compilation_cache.reset_cache()
      if values is keep:
        yield str(folder / "one.npz")


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_two_steps_and_an_evaluation(path, block, tmp_path):
  config = config_lib.read(f"{path}:backbone=vit_one").unlock()
  config.task, config.data.root = "mini_digits", None
  config.data.train_split, config.data.eval_split = "val200", "test"
  config.weights, config.model.image_size = block, 32
  config.batch_size, config.eval.batch_size = 100, 400
  config.optim.epochs, config.eval.every_epochs = 1, 1
  config.optim.warmup_epochs, config.optim.cooldown_epochs = 0, 0
  config.model.drop_path = 0.1  # in which CIFAR-100's and ImageNet's differ
  config.log.tensorboard = False
  result = loop.run(config, tmp_path / "run", jax.devices()[:1])
  assert result["steps"] == 2 and result["test_count"] == 797
  # Better than nothing learnt is not asked of two steps, but every trained number must be finite.
  assert result["test_loss"] < 10 and (tmp_path / "run/adapter.safetensors").exists()


def test_a_config_says_how_it_is_run_and_what_it_aims_at():
  for path in CONFIGS:
    text = path.read_text().split('"""')[1]
    assert f"--config=configs/{path.name}" in text, path
    if path.stem.startswith(RECIPES):
      flat = " ".join(text.split())
      assert "not run here" in flat.lower() and "Trained: " in flat and "Needs " in flat, path


@functools.cache
def trained(method):
  """How much `method` trains on ViT-B/16 beside the head's last layer, of ten classes."""
  model = models.create("vit_b16", num_classes=10, **method.builds)
  return count.count(Tuned(model, (method,), sites(model, models.images(model))))["trained"] - 7690


@pytest.mark.slow
def test_what_a_config_says_it_trains_is_what_it_trains():
  for path in CONFIGS:
    if path.stem.startswith(RECIPES):
      config = config_lib.read(str(path))
      method, *placed = methods.build(config)
      said = re.search(r"Trained:[^.]*\.", path.read_text().split('"""')[1].replace("\n", " "))[0]
      numbers = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\d", said)] or [0]
      each = method.length if "a prompt" in said else 1
      if config.methods[0] == "spt":
        assert numbers[0] == method.budget and len(placed) == 1, path
      else:
        assert trained(method) == numbers[0] * each and not placed, path
      assert numbers[1:] in ([], [85_798_656]), path
