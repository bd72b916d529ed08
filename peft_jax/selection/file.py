"""The file of a selection: which entries of which parameters, and what chose them.

One safetensors file: an int32 array of flat places for every leaf of `params` of which entries were
chosen, at its path ("encoder/blocks_0/attn/q/kernel"), and under "peft_jax_selection" one json text

    format     2
    method     the fields of the method that chose, as configured, with its name
    methods    the methods as the choice has left them, [{"method": name, **fields}, ...]
    model      name of the backbone; base_name, base: of its weights, the name and fingerprint
    data       fingerprint of the images
    task, split, seed, batch_size, image_size
    preprocessing   names of resize, normalize and augment of the images that were scored
    given      fingerprint of the scores that were given in a file, "" for none
    shapes     {path: shape} of every leaf that could be chosen from
    counts     {path: n}: of each leaf the entries that the scores named; what was then placed
               there instead of them does not change it. A leaf without any may be left out.
"""

import dataclasses
import json
import math

import jax
import numpy as np

from peft_jax import files, safetensors

FORMAT = 2
NAME = "peft_jax_selection"
# Fields of a method that say what else is trained, or how, and not which entries are chosen.
BESIDE = ("collection", "biases", "skip_biases", "rel_pos", "layer_scale", "norms", "form",
          "delta", "scores", "chosen")
KINDS = {
  "method": dict, "methods": list, "model": str, "base": str, "base_name": str, "data": str,
  "task": str, "split": str, "seed": int, "batch_size": int, "image_size": int, "shapes": dict,
  "counts": dict,
}  # fmt: skip


def about(method, name, config, base, dataset, split):
  """What a selection comes from, known before it is made, as json gives it back.

  method: the one that chooses, as configured; name: its name in METHODS.
  """
  return {
    "format": FORMAT,
    "method": plain(method, name),
    "model": config.model.name,
    "base_name": base.name,
    "base": base.fingerprint,
    "data": dataset.fingerprint(),
    "task": config.task,
    "split": split.name,
    "seed": config.seed,
    "batch_size": config.batch_size,
    "image_size": config.model.image_size,
    "preprocessing": [config.data[name] for name in ("resize", "normalize", "augment")],
    "given": files.digest(safetensors.read(method.scores)[0]) if method.scores else "",
  }


def header(about, methods, names, shapes, counts):
  """The whole header: `about`, and what the choice gave.

  methods, names: those told what was chosen, and their names in METHODS. shapes, counts: as above.
  """
  return about | {
    "methods": [plain(method, name) for method, name in zip(methods, names, strict=True)],
    "shapes": {path: list(shape) for path, shape in shapes.items()},
    "counts": {path: int(count) for path, count in counts.items()},
  }


def plain(method, name):
  """{"method": name, **fields} of a method, as json gives it back."""
  fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init}
  return json.loads(json.dumps({"method": name, **fields}))


def save(path, places, header):
  """Writes {leaf path: places} and the header; the bytes are a function of both."""
  safetensors.write(path, _arrays(places), _metadata(header))


def size(places, header):
  """The bytes that `save` writes; places may be shapes (jax.ShapeDtypeStruct)."""
  return safetensors.size(places, _metadata(header))


def _metadata(header):
  return {NAME: json.dumps(header, sort_keys=True, separators=(",", ":"))}


def _arrays(places):
  return {path: np.asarray(rows, np.int32) for path, rows in jax.device_get(places).items()}


def read(path):
  """(places, header) of a selection file; ValueError in one sentence for one that is none."""
  arrays, metadata = safetensors.read(path)
  if NAME not in metadata:
    raise ValueError(f"{path} is no selection (its metadata has no {NAME!r}); python -m peft_jax "
                     "select and a training run with gps or spt write one.")
  try:
    found = json.loads(metadata[NAME])
  except (ValueError, RecursionError):
    found = None
  if isinstance(found, dict) and found.get("format") == 1:
    raise ValueError(f"The selection {path} was written by an earlier version (format 1 instead of "
                     f"{FORMAT}): remove it and choose again.")
  if why := damage(arrays, found):
    raise ValueError(f"The selection {path} has a damaged header ({why}): choose again.")
  return arrays, found


def damage(arrays, found):
  """What is wrong with the contents of a file, in a few words; None where nothing is."""
  if not isinstance(found, dict) or found.get("format") != FORMAT:
    return f"it is no table of format {FORMAT}"
  for key, kind in KINDS.items():
    if type(found.get(key)) is not kind:
      return f"{key} is no {kind.__name__}"
  methods, shapes, counts = found["methods"], found["shapes"], found["counts"]
  if not all(isinstance(m, dict) and type(m.get("method")) is str
             for m in [found["method"], *methods]):
    return "a method has no name"
  if not all(isinstance(shape, list) and shape and all(type(n) is int and n > 0 for n in shape)
             for shape in shapes.values()):
    return "a shape is none"
  sizes = {path: math.prod(shape) for path, shape in shapes.items()}
  if not all(type(n) is int and 0 <= n <= sizes.get(path, 0) for path, n in counts.items()):
    return "a count is larger than its leaf, or no number"
  for path, rows in arrays.items():
    if path not in shapes or rows.dtype != np.int32:
      return f"{path} is no leaf that could be chosen from, or not int32"
    if rows.size and not (0 <= rows.min() and rows.max() < sizes[path]):
      return f"{path} has a place outside the leaf's {sizes[path]}"
  return None


def same(found, wanted):
  """Whether a file's header says of its choice all that `wanted`, an `about`, says."""
  return all(found.get(key) == value for key, value in wanted.items())


def check(path, found, wanted):
  """Raises ValueError where a selection was made on other weights, or by another rule."""
  if found["base"] != wanted["base"]:
    raise ValueError(
      f"The selection {path} was made on weights with fingerprint {found['base'][:16]}, this run "
      f"has {wanted['base'][:16]}; it means nothing on other weights."
    )
  if found.get("given", "") != wanted.get("given", found.get("given", "")):
    raise ValueError(f"The selection {path} was made by other scores than those of this run's "
                     "scores file; give the same, or choose anew.")
  there, here = found["method"], wanted["method"]
  for field in ["method", *sorted((there.keys() | here.keys()) - {"method", *BESIDE})]:
    if there.get(field) != here.get(field):
      raise ValueError(f"The selection {path} was made with {field}={there.get(field)!r}, this run "
                       f"has {here.get(field)!r}; give the same, or choose anew.")
