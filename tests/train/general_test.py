"""SSF's values for CIFAR-100 and ImageNet reach a config for each backbone; see vtab_test."""

import pytest

from peft_jax import methods, models
from peft_jax.sites import sites
from peft_jax.train import config as config_lib
from peft_jax.train import general, recipe
from peft_jax.tuned import Tuned

SUITES = {"cifar100_full": "cifar100", "imagenet": "imagenet"}
MODES = {"ssf": "ssf", "linear_probe": "linear", "full": "full"}
NAMES = ["san", "ssf", "lora", "adapter", "adaptformer", "vpt_deep", "vpt_shallow", "full",
         "linear", "bias", "norm", "partial", "mlp"]


def test_every_value_of_every_script_of_ssf(facts, ssf_script, resolved):
  rows = facts("ssf", group="general")
  assert {(r["backbone"], r["dataset"], r["mode"]) for r in rows} == general.SSF.keys()
  for row in rows:
    expected = ssf_script(row)
    name = f"{SUITES[row['dataset']]}_{MODES[row['mode']]}"
    config = resolved(name, f"backbone={row['backbone']}")
    assert {key: config[key] for key in expected} == expected, row


@pytest.mark.parametrize("suite", SUITES.values())
@pytest.mark.parametrize("name", NAMES)
def test_a_method_without_a_script_takes_the_values_of_the_mode_it_says(name, suite, resolved):
  mode = {"full": "full", "partial": "full", "linear": "linear", "mlp": "linear"}.get(name, "ssf")
  for backbone in ("vit_b16", "swin_b", "convnext_b"):
    config = resolved(f"{suite}_{name}", f"backbone={backbone}")
    like = resolved(f"{suite}_{mode}", f"backbone={backbone}")
    own = ("methods", "vpt.", "lora.", "adapter.", "adaptformer.", "model.head_")
    if name == "san":  # the optimizer of its own script
      own += ("optim.", "model.drop_path", "ema")
      optim = {n: config[f"optim.{n}"] for n in ("lr", "warmup_lr", "min_lr", "weight_decay")}
      assert optim == {"lr": 1e-3, "warmup_lr": 1e-4, "min_lr": 1e-8, "weight_decay": 0.0}
      assert config["ema"] == config["model.drop_path"] == config["optim.cooldown_epochs"] == 0
      for key in ("name", "epochs", "warmup_epochs"):
        assert config[f"optim.{key}"] == like[f"optim.{key}"]
    for key in like:
      if not key.startswith(own):
        assert config[key] == like[key], (backbone, key)


@pytest.mark.parametrize("backbone", ["vit_test", "swin_test", "convnext_test"])
def test_every_method_finds_its_sites_on_every_family(backbone):
  for name in NAMES:
    file = f"configs/cifar100_{name}.py:backbone={backbone}"
    config = config_lib.read(f"{config_lib.__file__.partition('peft_jax')[0]}{file}").unlock()
    config.weights, config.lora.rank = "random", 2  # their widths are small
    config = config_lib.resolve(config)
    model = models.create(num_classes=100, **config.model)
    Tuned(model, methods.build(config), sites(model, models.images(model)))


def test_a_name_of_timm_has_the_values_and_weights_of_ours(resolved):
  for long, short in recipe.SHORT.items():
    a, b = (resolved("imagenet_ssf", f"backbone={name}") for name in (long, short))
    assert a.pop("model.name") == long and b.pop("model.name") == short
    assert a == b and a["weights"] == recipe.WEIGHTS[short]


def test_the_argument_has_no_task(resolved):
  with pytest.raises(ValueError, match="no key 'task'"):
    resolved("imagenet_ssf", "task=imagenet")
