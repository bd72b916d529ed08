"""Configs: a section per method, and one sentence for what does not exist."""

import dataclasses
import json
import re

import pytest

from peft_jax import data
from peft_jax.methods import METHODS
from peft_jax.train import config as config_lib


def test_every_method_has_a_section_that_builds_its_default():
  config = config_lib.default()
  for name, method in METHODS.items():
    assert set(config[name]) == {f.name for f in dataclasses.fields(method) if f.init}
    assert method(**dict(config[name])) == method()


def test_an_unset_value_keeps_its_type():
  config = config_lib.default().unlock()
  config.san.shift = True
  config.san.recal = "none"
  config.optim.head_lr = 1e-2
  with pytest.raises(TypeError):
    config.san.recal = 3
  assert METHODS["san"](**dict(config.san)).shift is True


def test_a_mistyped_key_fails():
  with pytest.raises(AttributeError):
    config_lib.default().unlock().lock().lrr = 1


def test_argument():
  allowed = {"task": "mini_texture", "backbone": None, "epochs": 3}
  parse = lambda text: config_lib.parse_argument(text, allowed)  # noqa: E731
  assert parse("") == parse(None) == allowed
  assert parse("epochs=7, task=dtd") == {"task": "dtd", "backbone": None, "epochs": 7}
  for text, sentence in {
    "tsk=dtd": "no key 'tsk'; did you mean 'task'? Keys are task, backbone, epochs",
    "dtd": "'dtd' is not of the form key=value",
    "epochs=x": "epochs=x is not of type int",
  }.items():
    with pytest.raises(ValueError, match=re.escape(sentence)):
      parse(text)


@pytest.mark.parametrize(
  "typed, meant",
  [("lrr", "optim.lr"), ("lr", "optim.lr"), ("optim.epoch", "optim.epochs"), ("sann", "san"),
   ("lora.rnak", "lora.rank"), ("batchsize", "batch_size"), ("workdri", "workdir")],
)
def test_nearest(typed, meant):
  assert config_lib.nearest(typed, [*config_lib.keys(config_lib.default()), "workdir"]) == meant


def test_resolve_makes_everything_explicit_and_json_round_trips():
  config = config_lib.default().unlock()
  config.model.name = "dinov2_vits14"
  config.methods = ("ssf, lora",)
  resolved = config_lib.resolve(config)
  assert resolved.methods == ("ssf", "lora")
  assert resolved.weights == "dinov2_vits14" and resolved.data.normalize == "imagenet"
  assert resolved.model.image_size == 518
  assert config.weights is None
  stored = config_lib.flatten(json.loads(resolved.to_json()))
  assert stored == config_lib.flatten(resolved)
  assert config_lib.differing(stored, stored | {"optim.lr": 7}) == [
    "optim.lr: 0.001 there, 7 now"
  ]


@pytest.mark.parametrize(
  "key, value, sentence",
  [
    ("methods", ("sssf",), "did you mean 'ssf'?"),
    ("methods", ("",), "methods is empty; choose among lora, dora, ia3, ssf"),
    ("model.name", "vit_b17", "vit_b16"),
    ("parallel", "pmapp", "did you mean 'pmap'?"),
    ("weights", None, "vit_b16 has no weights of its own; give --config.weights"),
    ("batch_size", 0, "batch_size=0 is too small; it must be at least 1"),
    ("optim.lr", float("nan"), "optim.lr=nan is too small"),
    ("ema", 1.0, "ema=1.0 is outside [0, 1)"),
    ("data.view", "random_crop", "There are random_resized_crop, short_crop, squash_crop."),
    ("data.interpolation", "bicubik", "did you mean 'bicubic'?"),
    ("data.rand_augment", "rand-m9-inc1", "needs a view: set data.view to one of random_resized"),
    ("data.erasing", 1.5, "data.erasing=1.5 is outside [0, 1]."),
    ("data.erasing", float("nan"), "data.erasing=nan is outside [0, 1]."),
    ("data.mixup", -0.1, "data.mixup=-0.1 is too small; it must be at least 0"),
    ("data.cutmix", -1.0, "data.cutmix=-1.0 is too small"),
  ],
)
def test_a_value_that_cannot_work_is_refused(key, value, sentence):
  config = config_lib.default().unlock()
  config.weights = "random"
  with config.ignore_type():
    config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=re.escape(sentence)):
    config_lib.resolve(config)


def test_views_are_checked_with_what_belongs_to_them():
  config = config_lib.default().unlock()
  config.weights, config.data.view = "random", "short_crop"
  config.data.augment = "flip"
  with pytest.raises(ValueError, match="data.augment=flip would do it again: leave data.augment=n"):
    config_lib.resolve(config)
  config.data.augment, config.data.rand_augment = "none", "rand-m9"
  with pytest.raises(ValueError, match="data.rand_augment='rand-m9' is not understood"):
    config_lib.resolve(config)
  config.data.rand_augment = "rand-m9-mstd0.5-inc1"
  resolved = config_lib.resolve(config)
  made = data.view.of(resolved.data)
  assert (made.how, made.interpolation, made.rand_augment.std) == ("short_crop", "random", 0.5)
  config.data.normalize = "imagenet"
  assert data.view.of(config_lib.resolve(config).data).fill == (124, 116, 104)
  config.data.view = config.data.rand_augment = None
  assert data.view.of(config_lib.resolve(config).data) is None


@pytest.mark.parametrize("name", ["adapter", "adaptformer", "vpt"])
def test_a_merge_that_cannot_be_is_refused_before_the_run(name):
  config = config_lib.default().unlock()
  config.weights, config.merge, config.methods = "random", True, ("ssf", name)
  with pytest.raises(ValueError, match=f"merge=True, but {name} is no change of weights"):
    config_lib.resolve(config)
  config.methods = ("ssf", "mlp")
  assert config_lib.resolve(config).merge
