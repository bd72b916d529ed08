"""What a run is: the default configuration, its command line, and the check of both.

A config is a flat-as-possible ml_collections ConfigDict of plain values. Every method of
`peft_jax.methods.METHODS` has a section named like it, made from its dataclass fields, so that
`--config.lora.rank=4` works for every config file and a mistyped key fails.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import runpy
import sys
import types
import typing

from absl import flags
from ml_collections import config_dict

from peft_jax import methods as methods_lib
from peft_jax import models
from peft_jax.data import view
from peft_jax.data.augment import AUGMENTS
from peft_jax.data.pipeline import MEAN_STD
from peft_jax.data.rand_augment import FILTERS
from peft_jax.methods import entries, spt
from peft_jax.models.layers import HEAD_INITS

USAGE = 2  # exit code: the command line is wrong


def default():
  """The configuration every config file starts from; locked, unset values are None.

  Units: lr, head_lr, group_lr, warmup_lr, min_lr are absolute (never scaled by the batch);
  weight_decay is multiplied by the learning rate, and decoupled but in adam and sgd, where it is
  added to the gradient; drop_path is the last block's rate; batch_size is the total over all
  devices.
  """
  c = config_dict.ConfigDict()
  c.seed = 0
  c.task = "mini_texture"
  c.methods = ("san",)  # names in METHODS; the first acts closest to the weights
  c.weights = config_dict.placeholder(str)  # None: the preset's own; "random"; or a file
  c.selection = config_dict.placeholder(str)  # of gps or spt: a run's selection.safetensors
  c.head_init = "small"  # std 0.02, zero bias; or "vpt": variance 2 / classes, bias -log 99
  c.batch_size = 64
  c.label_smoothing = 0.0
  c.ema = 0.0  # decay per step; 0 is off; when on, evaluation and output use the average
  c.parallel = "jit"  # or "pmap"
  c.deterministic = True  # on a GPU: the same bits in every run, at some speed
  c.merge = False  # also write the merged weights
  c.data = {
    "root": config_dict.placeholder(str),
    "resize": "bicubic_pil",
    "train_split": config_dict.placeholder(str),  # None: the task's; VTAB: train800val200
    "eval_split": config_dict.placeholder(str),  # None: the task's; VTAB: test
    "augment": "none",
    # How a training image is cut out of its file, with random flips: a name of data.view.VIEWS.
    # None: as resize does.
    "view": config_dict.placeholder(str),
    "interpolation": "random",  # of random_resized_crop and rand_augment: or bicubic, bilinear
    "rand_augment": config_dict.placeholder(str),  # timm's string, such as rand-m9-mstd0.5-inc1
    "erasing": 0.0,  # probability of random erasing, each image
    "mixup": 0.0,  # alphas of the two, 0 is off; both on: one of them per batch, 1/2 each
    "cutmix": 0.0,
    "normalize": config_dict.placeholder(str),  # None: what the backbone was trained with
    "resident_mb": 2048,  # splits up to this size (MiB of uint8) stay in memory
  }
  c.model = {
    "name": "vit_b16",
    "image_size": config_dict.placeholder(int),  # None: the preset's
    "drop_path": 0.0,
    "loop": "python",
    "dtype": "float32",
    "attention": "xla",
    # None: the preset's. Random weights want 1: DINOv2 starts from 1e-5, at which blocks are mute.
    "layer_scale": config_dict.placeholder(float),
    "head_layers": config_dict.placeholder(int),  # None: 1, or what a method (mlp) builds
    "head_dropout": config_dict.placeholder(float),
  }
  c.optim = {
    "name": "adamw",  # or "adam", "sgd": torch's, with the decay in the gradient
    "lr": 1e-3,
    "head_lr": config_dict.placeholder(float),  # None: lr
    "group_lr": {  # None: lr; one per method's collection, and the backbone's own parameters
      **{n: config_dict.placeholder(float) for n, m in methods_lib.METHODS.items() if m.collection},
      "backbone": config_dict.placeholder(float),
    },
    "weight_decay": 0.0,
    "decay": "matrices",  # or "all": vectors, too, but for the bias of the head's last layer
    "momentum": 0.9,  # of sgd; 0 is off
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "clip": 0.0,  # largest global gradient norm; 0 is off
    "warmup_epochs": 10,
    "warmup_lr": 1e-7,
    "min_lr": 1e-8,
    "epochs": 100,
    "cooldown_epochs": 0,  # at min_lr, after `epochs`
    "shifted": False,  # whether the cosine sets in at lr, after the warm-up (VPT), not below (timm)
    "lag": 0,  # epochs by which the schedule is late (1: the released SAN loop)
  }
  c.checkpoint = {"every_steps": 500, "keep": 2}
  c.eval = {"every_epochs": 10, "batch_size": 64}
  c.log = {"every_steps": 10, "tensorboard": True}
  for name, method in methods_lib.METHODS.items():
    c[name] = section(method)
  return c.lock()


def section(method):
  """The fields of a method's dataclass as a ConfigDict; a default of None keeps its type."""
  hints = typing.get_type_hints(method)
  values = {}
  for field in dataclasses.fields(method):
    if not field.init:
      continue
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
      value = field.default_factory()
    if value is None or value is dataclasses.MISSING:
      value = config_dict.placeholder(_type_of(hints[field.name]))
    values[field.name] = value
  return config_dict.ConfigDict(values)


def _type_of(hint):
  """The plain type of an annotation such as `float | None`."""
  if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
    hint = next(part for part in typing.get_args(hint) if part is not type(None))
  hint = typing.get_origin(hint) or hint
  return hint if hint in (bool, int, float, str, tuple) else object


def parse_argument(argument, allowed):
  """{name: value} of a config file's argument, "task=cifar100,backbone=vit_b16".

  allowed: {name: default}; a value takes the type of its default.
  Raises ValueError for an unknown name, naming the nearest, and for a malformed part.
  """
  values = dict(allowed)
  for part in filter(None, (argument or "").split(",")):
    name, equals, text = (piece.strip() for piece in part.partition("="))
    if not equals:
      raise ValueError(
        f"The config argument {part!r} is not of the form key=value; keys are "
        f"{', '.join(allowed)}, for example {next(iter(allowed))}={next(iter(allowed.values()))}."
      )
    if name not in allowed:
      raise ValueError(
        f"The config argument has no key {name!r}; did you mean {nearest(name, allowed)!r}? "
        f"Keys are {', '.join(allowed)}."
      )
    try:
      values[name] = type(allowed[name])(text) if allowed[name] is not None else text
    except ValueError:
      kind = type(allowed[name]).__name__
      raise ValueError(f"The config argument {name}={text} is not of type {kind}.") from None
  return values


def nearest(name, names):
  """The name most like `name`; "lr" finds "optim.lr" through its last part."""

  def likeness(other):
    whole = difflib.SequenceMatcher(None, name, other).ratio()
    last = difflib.SequenceMatcher(None, name.split(".")[-1], other.split(".")[-1]).ratio()
    return max(whole, last - 0.01)

  return max(sorted(names), key=likeness)


def read(given):
  """The config of "FILE.py:key=value,key=value", before any override.

  Raises FileNotFoundError or ValueError for what the user typed wrongly.
  """
  if not given:
    raise ValueError("--config is missing, for example --config=configs/quickstart.py.")
  path, *argument = given.split(":", 1)
  if not os.path.isfile(path):
    raise FileNotFoundError(f"There is no config file {path!r}; look into configs/.")
  return runpy.run_path(path)["get_config"](*argument)


def check_keys(arguments, config):
  """Raises ValueError for a `--config.KEY` that the config does not have, naming the nearest."""
  known = keys(config)
  for typed in arguments:
    key = re.fullmatch(r"--?config\.([^=]+)(=.*)?", typed)
    if key and key[1] not in known:
      near = "--workdir" if key[1] == "workdir" else nearest(key[1], known)
      raise ValueError(f"The config has no key {key[1]!r}; did you mean {near!r}?")


def keys(config):
  """All dotted keys of a config, sections included."""
  found = []
  for name in config:
    found.append(name)
    if isinstance(config[name], config_dict.ConfigDict):
      found += [f"{name}.{inner}" for inner in keys(config[name])]
  return found


def flatten(config):
  """{dotted key: plain value} of a config or of its json form; tuples become lists."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, (dict, config_dict.ConfigDict)):
      flat |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
    else:
      flat[name] = list(value) if isinstance(value, tuple) else value
  return flat


def resolve(config):
  """The config with everything explicit and checked: a locked copy.

  Names given as "ssf,lora" become a tuple; what is None and depends on the backbone (image
  size, normalization, weights) or on a method (the head's layers) is filled in. Raises
  ValueError for a value out of its range or a name that does not exist.
  """
  c = config.copy_and_resolve_references().unlock()
  c.methods = tuple(
    name.strip() for text in c.methods for name in str(text).split(",") if name.strip()
  )
  if not c.methods:
    raise ValueError(f"methods is empty; choose among {', '.join(methods_lib.METHODS)}.")
  for name in c.methods:
    _among("methods", name, methods_lib.METHODS)
  built = methods_lib.build(c)
  choosers = [name for name, method in zip(c.methods, built, strict=True) if method.chooses]
  if len(choosers) > 1:
    raise ValueError(f"methods has {' and '.join(choosers)}, which both choose what they train, "
                     "and a run has one choice: keep one of them.")
  spt.behind(c.methods, built)
  entries.check(built)
  for name, method in zip(c.methods, built, strict=True):
    for field, value in method.builds.items():
      if c.model[field] not in (None, value):
        raise ValueError(f"model.{field}={c.model[field]}, but methods={name} builds a model with "
                         f"{value}: leave the former unset and set the options of {name}.")
      c.model[field] = value
    if c.merge and method.collection and method.weights is None:
      raise ValueError(f"merge=True, but {name} is no change of weights and cannot be merged: "
                       "leave merge=False.")
  preset = models.preset(c.model.name)
  for place, name, value in [
    (c.model, "image_size", preset.image_size),
    (c.model, "layer_scale", getattr(preset.model, "layer_scale", None)),
    (c.model, "head_layers", preset.model.head_layers),
    (c.model, "head_dropout", preset.model.head_dropout),
    (c.data, "normalize", preset.normalize),
    (c, "weights", preset.weights),
  ]:
    if place[name] is None:
      place[name] = value
  if c.weights is None:
    raise ValueError(
      f"{c.model.name} has no weights of its own; give --config.weights=FILE.npz, or =random."
    )
  _among("parallel", c.parallel, ("jit", "pmap"))
  _among("data.normalize", c.data.normalize, MEAN_STD)
  _among("data.augment", c.data.augment, AUGMENTS)
  if c.data.view is not None:
    _among("data.view", c.data.view, view.VIEWS)
  _among("data.interpolation", c.data.interpolation, FILTERS)
  view.of(c.data)
  _among("head_init", c.head_init, HEAD_INITS)
  _among("optim.name", c.optim.name, ("adamw", "adam", "sgd"))
  _among("optim.decay", c.optim.decay, ("matrices", "all"))
  for key in (
    "batch_size",
    "eval.batch_size",
    "eval.every_epochs",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "log.every_steps",
    "model.image_size",
    "optim.epochs",
  ):
    _range(key, flatten(c)[key], 1)
  momenta = ("optim.b1", "optim.b2", "optim.momentum")
  for key in ("ema", "label_smoothing", "model.drop_path", *momenta):
    value = flatten(c)[key]
    if not 0 <= value < 1:
      raise ValueError(f"{key}={value} is outside [0, 1).")
  if not 0 <= c.data.erasing <= 1:
    raise ValueError(f"data.erasing={c.data.erasing} is outside [0, 1].")
  for key in ("mixup", "cutmix"):
    _range(f"data.{key}", c.data[key], 0)
  for key in ("warmup_epochs", "cooldown_epochs", "lag", "clip", "weight_decay", "lr", "min_lr"):
    _range(f"optim.{key}", c.optim[key], 0)
  for key, value in flatten(c.optim).items():
    if key in ("head_lr", "warmup_lr", "eps") or key.startswith("group_lr."):
      _range(f"optim.{key}", 0 if value is None else value, 0)
  return c.lock()


def _among(key, value, names):
  if value not in names:
    raise ValueError(
      f"{key}={value!r} does not exist; did you mean {nearest(str(value), names)!r}? "
      f"There are {', '.join(names)}."
    )


def _range(key, value, least):
  if not value >= least:
    raise ValueError(f"{key}={value} is too small; it must be at least {least}.")


def differing(old, new):
  """One line for every key in which two flat configs differ."""
  missing = "(not there)"
  return [
    f"{key}: {old.get(key, missing)} there, {new.get(key, missing)} now"
    for key in sorted(old.keys() | new.keys())
    if old.get(key, missing) != new.get(key, missing)
  ]


def parse_flags(argv):
  """absl's flag parser, for app.run(main, flags_parser=parse_flags).

  What the user typed wrongly gives one line on stderr and exit code 2, no traceback.
  """
  if {"--help", "-help", "-h"} & set(argv[1:]):
    print(sys.modules["__main__"].__doc__)
    sys.exit(0)
  try:
    given = re.search(r"(?m)^--?config(?:=|\n)(.*)$", "\n".join(argv))
    check_keys(argv, read(given and given[1]))
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise ValueError(f"{rest[1]!r} is not an option; options look like --config.seed=1.")
    resolve(flags.FLAGS.config)
    return rest
  except flags.UnrecognizedFlagError as error:
    name = nearest(error.flagname, ["config", "workdir"])
    sentence = f"There is no flag --{error.flagname}; did you mean --{name}?"
  except (flags.Error, ValueError, OSError) as error:
    sentence = str(error).splitlines()[0]
  print(f"train.py: {sentence}", file=sys.stderr)
  sys.exit(USAGE)
