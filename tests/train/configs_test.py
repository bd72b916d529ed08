"""Every config of configs/ takes two steps and is evaluated, on the smallest model."""

import pathlib

import jax
import pytest

from peft_jax.train import config as config_lib
from peft_jax.train import loop

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_two_steps_and_an_evaluation(path, backbone, tmp_path):
  config = config_lib.read(f"{path}:backbone=vit_test").unlock()
  config.task, config.data.root = "mini_digits", None
  config.data.train_split, config.data.eval_split = "train800", "val200"
  config.weights, config.model.image_size = backbone, 32
  config.batch_size, config.optim.epochs, config.eval.every_epochs = 400, 1, 1
  config.optim.warmup_epochs, config.optim.cooldown_epochs = 0, 0
  config.log.tensorboard = False
  result = loop.run(config, tmp_path / "run", jax.devices()[:1])
  assert result["steps"] == 2 and result["val200_count"] == 200
  # Better than nothing learnt is not asked of two steps, but every trained number must be finite.
  assert result["val200_loss"] < 10 and (tmp_path / "run/adapter.safetensors").exists()


def test_a_config_says_how_it_is_run_and_what_it_aims_at():
  for path in CONFIGS:
    text = path.read_text().split('"""')[1]
    assert f"--config=configs/{path.name}" in text, path
    if path.stem.startswith("vtab"):
      assert "not run here" in text.lower().replace("\n", " ") and "Trained: " in text, path
