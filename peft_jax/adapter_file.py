"""The small file a user shares: what was trained, and everything needed to run it again.

One safetensors file. Its arrays are the trained tree, flat: "san/encoder/blocks_0/attn/q/scale",
"params/head/kernel"; and what the batch norms of a head keep,
"batch_stats/head/norm_0/mean". Its metadata is one json text under "peft_jax_adapter":

    format         1
    methods        [{"method": name in METHODS, **fields}, ...]
    head           regular expression of the head's modules
    model          options of models.create, or null for a model that is none of its presets
    base           {"name", "fingerprint", "sha256", "key"} of the weights below the adapter
    preprocessing  {"image_size", "resize", "normalize"}
    task, class_names, seed, versions

Only plain values are read and nothing in a file is executed or imported by name.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import data, models, safetensors, statistics, versions, weights
from peft_jax.data import transforms
from peft_jax.keys import key as key_of
from peft_jax.loaded import Loaded
from peft_jax.methods import METHODS
from peft_jax.models import stack_blocks, unstack_blocks
from peft_jax.sites import sites
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned
from peft_jax.weights import names

FORMAT = 1
NAME = "peft_jax_adapter"
MERGED = "peft_jax_merged"
PACKAGES = ("peft_jax", "jax", "flax")
# Options of a model that change no output at prediction; a file holds none of them.
FREE = ("drop_path", "head_dropout", "attention")


def save(path, train, **about):
  """Writes the trained tree (`tuned.split(variables)[0]`) and what `header` says of it.

  With GPS `train` holds the places of its values, too: join(train, partition.fixed(frozen)).
  With a head of several layers `train` holds its "batch_stats", too.
  about: the arguments of `header`. Written under a temporary name and renamed; the bytes are a
  function of the arguments and of the installed versions.
  """
  safetensors.write(path, flat(train), _metadata(header(**about)))


def size(train, **about):
  """The bytes of the file that `save` makes; leaves may be shapes (jax.ShapeDtypeStruct)."""
  return safetensors.size(flat(train), _metadata(header(**about)))


def save_merged(path, params, header, timm=False):
  """Writes merged parameters, one subtree per block, to a .safetensors or .npz file.

  The former holds the adapter's header, class names included, under "peft_jax_merged"; the latter
  is base weights for weights.load, which starts a fresh head.
  timm: names and layouts of timm's state dict of the same model, head included, for
    load_state_dict(strict=True); .safetensors only.
  """
  if timm and not str(path).endswith(".safetensors"):
    raise ValueError(f"timm reads .safetensors, not {path}; name the file so.")
  if str(path).endswith(".npz"):
    return weights.save(path, params)
  arrays = flat(unstack_blocks(params))
  if timm:
    model = (header["model"] or {}).get("name", "")
    arrays = names.to_timm(arrays, names.has_conv_mlp(model))
  text = json.dumps(header, sort_keys=True, separators=(",", ":"))
  safetensors.write(path, arrays, {MERGED: text})


def _metadata(header):
  return {NAME: json.dumps(header, sort_keys=True, separators=(",", ":"))}


def header(
  *, tuned, base, model, resize, normalize, task="", class_names=None, seed=0, key=None
):
  """The header of an adapter file, as plain values.

  base: the Base that weights.load returned; key: the key given to it, needed where the base is
    "random" (a seeded backbone is made again, not stored).
  model: the preset's name, or None for a model of the user's own: `load` cannot build that, but
    `read` gives its variables.
  resize, normalize: what was done to the images, names of peft_jax.data.
  """
  return {
    "format": FORMAT,
    "methods": [_plain_method(method) for method in tuned.methods],
    "head": tuned.head,
    "model": None if model is None else _options(tuned.model, model),
    "base": {
      "name": base.name,
      "fingerprint": base.fingerprint,
      "sha256": base.sha256,
      "key": _hex(key) if base.name == "random" else "",
    },
    "preprocessing": {
      "image_size": getattr(tuned.model, "image_size", None),
      "resize": resize,
      "normalize": normalize,
    },
    "task": task,
    "class_names": None if class_names is None else list(class_names),
    "seed": seed,
    "versions": versions.installed(*PACKAGES),
  }


def of_run(config, dataset):
  """The arguments of `header` that a training run's (resolved) config and data set determine."""
  return {
    "model": config.model.name,
    "resize": config.data.resize,
    "normalize": config.data.normalize,
    "task": config.task,
    "class_names": dataset.class_names,
    "seed": config.seed,
    "key": key_of(config.seed, "weights"),
  }


def _plain_method(method):
  name = next((n for n, kind in METHODS.items() if kind is type(method)), None)
  fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init}
  return {"method": name or f"{type(method).__module__}.{type(method).__qualname__}", **fields}


def _options(module, name):
  """What models.create needs to make `module`, but for FREE."""
  wanted = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.init}
  options = {"name": name, "num_classes": wanted["num_classes"], "image_size": wanted["image_size"]}
  plain = models.create(**options)
  if type(plain) is not type(module):
    raise ValueError(
      f"The adapter's model is a {type(module).__name__}, not the preset {name!r}; give model=None."
    )
  outside = {"parent", "name", *FREE}
  return options | {
    field: value
    for field, value in wanted.items()
    if field not in outside and value != getattr(plain, field)
  }


def _hex(key):
  """A key's data as text of a fixed length; the inverse of `_key`."""
  if key is None:
    raise ValueError(
      "An adapter on random weights needs the key they were made from: pass key=, the one given "
      "to weights.load."
    )
  return np.asarray(jax.random.key_data(key)).astype(">u4").tobytes().hex()


def _key(text):
  data = np.frombuffer(bytes.fromhex(text), ">u4").astype(np.uint32)
  return jax.random.wrap_key_data(jnp.asarray(data))


def read(path):
  """(trained tree, header) of an adapter file; nothing is built and no weights are loaded.

  Raises FileNotFoundError, or ValueError in one sentence for a file that is truncated, damaged,
  no adapter, or of a later format.
  """
  arrays, metadata = safetensors.read(path)
  if NAME not in metadata:
    raise ValueError(
      f"{path} is a safetensors file but no peft_jax adapter (its metadata has no {NAME!r}); an "
      "adapter is written by a training run or by peft_jax.save."
    )
  try:
    found = json.loads(metadata[NAME], object_hook=dict)
    _check_header(found)
    paths = set(arrays)
    for name in paths:
      parts = name.split("/")
      if any(not part for part in parts) or any(
        "/".join(parts[:i]) in paths for i in range(1, len(parts))
      ):
        raise ValueError(f"{name!r} is no path of a tree")
  except (ValueError, RecursionError) as error:
    raise ValueError(f"The adapter file {path} has a damaged header: {error}.") from None
  if found["format"] != FORMAT:
    raise ValueError(
      f"The adapter file {path} has format {found['format']}, this peft_jax reads {FORMAT}; "
      f"install peft_jax {str(found['versions'].get('peft_jax'))[:20]} or newer."
    )
  return nest(arrays), found


FIELDS = {
  "format": int,
  "methods": list,
  "head": str,
  "model": (dict, type(None)),
  "base": dict,
  "preprocessing": dict,
  "task": str,
  "class_names": (list, type(None)),
  "seed": int,
  "versions": dict,
}
PARTS = {
  "base": {"name": str, "fingerprint": str, "sha256": str, "key": str},
  "preprocessing": {"image_size": (int, type(None)), "resize": str, "normalize": str},
  "model": {"name": str, "num_classes": int, "image_size": int},
}


def _check_header(found):
  """Raises ValueError unless `found` has the fields of a header, of the right types."""
  if not isinstance(found, dict):
    raise ValueError("it is no table")
  _check_fields(found, FIELDS, "")
  for part, fields in PARTS.items():
    if found[part] is not None:
      _check_fields(found[part], fields, f"{part}.")
  if not re.fullmatch("([0-9a-f]{16})?", found["base"]["key"]):  # two words of 32 bits
    raise ValueError("base.key is no key")
  try:
    re.compile(found["head"])
  except re.error as error:
    raise ValueError(f"head is no regular expression ({error})") from None
  if not all(isinstance(m, dict) and isinstance(m.get("method"), str) for m in found["methods"]):
    raise ValueError("methods is no list of named methods")
  if not all(isinstance(name, str) for name in found["class_names"] or []):
    raise ValueError("class_names is no list of strings")


def _check_fields(table, fields, prefix):
  for name, kinds in fields.items():
    value = table.get(name)
    if name not in table or not isinstance(value, kinds) or isinstance(value, bool):
      raise ValueError(f"{prefix}{name} is missing or of the wrong type")


def load(adapter, base=None):
  """The Loaded model of an adapter file, on the weights it was trained on.

  base: None loads them by the name in the file; else another name or path of the same weights,
    or their parameter tree. Weights with another fingerprint are refused with ValueError, since
    an adapter means nothing on them.
  """
  train, header = read(adapter)
  try:
    tuned = build(header)
  except (ValueError, TypeError) as error:
    raise ValueError(f"The adapter file {adapter} cannot be used: {error}") from None
  params = _base(adapter, header, tuned.model, base)
  stats = statistics.start(tuned.table)
  own, trained = flat(train), flat(tuned.split(tuned.shapes)[0] | stats)
  given, wanted = flat({"params": params}) | own, flat(tuned.shapes | stats)
  for path in [*wanted, *given]:
    from_file = path in own or path in trained
    here, need = _form((own if from_file else given).get(path)), _form(wanted.get(path))
    if here != need:
      where = f"The adapter file {adapter}" if from_file else "The base"
      raise ValueError(f"{where} holds {here} at {path}, but its model and methods need {need}.")
    if path in own and path not in trained and jnp.issubdtype(own[path].dtype, jnp.floating):
      raise ValueError(
        f"The adapter file {adapter} holds {here} at {path}, but its methods do not train it."
      )
  return Loaded(tuned, jax.tree.map(jnp.asarray, nest(given)), header)


def _form(leaf):
  return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def build(header):
  """The Tuned that a header describes. Raises ValueError or TypeError where it describes none."""
  if header["model"] is None:
    raise ValueError(
      "it was trained on a model that is no preset; build that model and take the variables from "
      "peft_jax.adapter_file.read(path)."
    )
  model = models.create(**header["model"])
  names = header["class_names"]
  if names is not None and len(names) != model.num_classes:
    raise ValueError(f"it names {len(names)} classes, but its model has {model.num_classes}.")
  preprocessing = header["preprocessing"]
  transforms.check(preprocessing["resize"])
  data.normalize(np.zeros((1, 1, 1, 3), np.uint8), preprocessing["normalize"])
  if preprocessing["image_size"] != model.image_size:
    raise ValueError(
      f"its images have {preprocessing['image_size']} pixels, its model takes {model.image_size}."
    )
  return Tuned(model, methods_of(header), sites(model, models.images(model)), header["head"])


def methods_of(header):
  """The methods of a header, in order."""
  methods = []
  for fields in header["methods"]:
    fields = {name: _tuples(value) for name, value in fields.items()}
    name = fields.pop("method")
    if name not in METHODS:
      raise ValueError(f"its method {name!r} is not known here, only {', '.join(METHODS)}.")
    known = {field.name: field.default for field in dataclasses.fields(METHODS[name])}
    for option, value in fields.items():
      if option not in known:
        raise ValueError(f"its method {name!r} has an option {option!r} that is not known here.")
      if not _fits(value, known[option], option):
        raise ValueError(f"its method {name!r} has {option}={value!r}, which is of the wrong type.")
    methods.append(METHODS[name](**fields))
  return tuple(methods)


def _fits(value, default, option):
  """Whether a value may stand where a field has this default."""
  if default is None or default is dataclasses.MISSING:
    return True
  if isinstance(default, float):
    return type(value) in (int, float) and math.isfinite(value)
  if option == "sites":
    return isinstance(value, (str, tuple))
  return type(value) is type(default)


def _tuples(value):
  """json's lists as the tuples they were."""
  return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _base(adapter, header, model: nn.Module, base):
  """The backbone's parameters in the model's layout, their fingerprint checked."""
  wanted = header["base"]
  if isinstance(base, collections.abc.Mapping):
    params = unstack_blocks(dict(base))
    params = stack_blocks(params) if "scan" in model.loop else params
    name, found = "the given parameters", weights.fingerprint(params)
  else:
    name = wanted["name"] if base is None else str(base)
    key = _key(wanted["key"]) if wanted["key"] else jax.random.key(0)
    try:
      params, loaded = weights.load(name, model, key=key)
    except (ValueError, OSError) as error:
      if base is not None:
        raise
      raise type(error)(
        f"The adapter {adapter} was trained on the weights {name!r}, which cannot be loaded here: "
        f"{error} Give them as base= (--base)."
      ) from None
    found = loaded.fingerprint
  if found != wanted["fingerprint"]:
    hint = "give the weights it was trained on"
    if name == wanted["name"] == "random":
      hint = "seeded weights may differ between kinds of device and versions of jax: load it there"
    raise ValueError(
      f"The adapter {adapter} was trained on the weights {wanted['name']!r} (fingerprint "
      f"{wanted['fingerprint'][:16]}), but {name!r} has fingerprint {found[:16]}; {hint}."
    )
  return params
