"""The file of a selection: which entries of which kernels, and what chose them.

One safetensors file: an int32 array for every kernel, at its site's path, and under
"peft_jax_selection" one json text

    format   1
    method   the fields of the method that chose, with its name
    base     fingerprint of the weights they were chosen on
    data     fingerprint of the images
    task, split, seed, batch_size, image_size
"""

import dataclasses
import json

import jax
import numpy as np

from peft_jax import safetensors

FORMAT = 1
NAME = "peft_jax_selection"
# The fields that decide what is chosen.
RULE = ("k", "level", "score", "temperature", "drop_path", "row_permutation", "skip", "sites")


def about(method, name, config, base, dataset, split):
  """What the file of a run's selection says, as json gives it back; `method` as configured."""
  fields = {field.name: _plain(getattr(method, field.name))
            for field in dataclasses.fields(method) if field.init}
  return {
    "format": FORMAT,
    "method": {"method": name, **fields},
    "base": base.fingerprint,
    "data": dataset.fingerprint(),
    "task": config.task,
    "split": split.name,
    "seed": config.seed,
    "batch_size": config.batch_size,
    "image_size": config.model.image_size,
  }


def save(path, places, about):
  """Writes {path: places} and what `about` tells; the bytes are a function of both."""
  text = json.dumps(about, sort_keys=True, separators=(",", ":"))
  arrays = {site: np.asarray(rows, np.int32) for site, rows in jax.device_get(places).items()}
  safetensors.write(path, arrays, {NAME: text})


def read(path):
  """(places, about) of a selection file; ValueError in one sentence for one that is none."""
  arrays, metadata = safetensors.read(path)
  if NAME not in metadata:
    raise ValueError(f"{path} is no selection (its metadata has no {NAME!r}); a training run with "
                     "gps writes one.")
  try:
    found = json.loads(metadata[NAME])
    good = isinstance(found, dict) and found.get("format") == FORMAT
    good = good and all(isinstance(found.get(key), str) for key in ("base", "data", "task"))
    good = good and isinstance(found.get("method"), dict)
  except (ValueError, RecursionError):
    good = False
  if not good or any(rows.dtype != np.int32 for rows in arrays.values()):
    raise ValueError(f"The selection {path} has a damaged header, or a format other than {FORMAT}.")
  return arrays, found


def check(path, found, wanted):
  """Raises ValueError where a selection was made on other weights, or by another rule."""
  if found["base"] != wanted["base"]:
    raise ValueError(
      f"The selection {path} was made on weights with fingerprint {found['base'][:16]}, this run "
      f"has {wanted['base'][:16]}; it means nothing on other weights."
    )
  for field in ("method", *RULE):
    there, here = found["method"], wanted["method"]
    if there.get(field) != here.get(field):
      raise ValueError(f"The selection {path} was made with {field}={there.get(field)!r}, this run "
                       f"has {here.get(field)!r}; give the same, or choose anew.")


def _plain(value):
  return list(value) if isinstance(value, tuple) else value
