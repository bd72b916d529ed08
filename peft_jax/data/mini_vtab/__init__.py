"""mini_vtab: seven small tasks in the shape of VTAB-1k that need no download.

Real photographs and scans: fashion, digits, texture. Drawn by code: dsprites_loc, dsprites_ori,
clevr_count, clevr_dist. 800 + 200 images to train, up to 2000 to test.
"""

import functools

import numpy as np
from PIL import Image

from peft_jax.data.mini_vtab import clevr, dsprites, stored, texture
from peft_jax.data.mini_vtab.drawn import Drawn
from peft_jax.data.split import Split, concatenate, of_task

DRAWING = "v1"  # part of cache names and fingerprints: raise it when clevr or dsprites change


def open_task(task, size, resize):
  """The Dataset of one of the mini_ rows of the task table."""
  kind = task.name.removeprefix("mini_")
  sources = {name: source(kind, name) for name in ("train", "test")}
  train = Split(name="train", **sources["train"], size=size, resize=resize)
  test = Split(name="test", **sources["test"], size=size, resize=resize)
  train800, val200 = part(train, "train800", 0, 800), part(train, "val200", 800, 1000)
  splits = {
    "train800": train800,
    "val200": val200,
    "train800val200": concatenate("train800val200", train800, val200),
    "test": test,
  }
  for name, split in splits.items():
    assert len(split) == task.sizes[name], (task.name, name, len(split))
  return of_task(task, splits, "mini_vtab, part of peft_jax")


def source(kind, split):
  """labels, keys, read, content of "train" (train800, then val200) or "test"."""
  if kind in ("fashion", "digits"):
    arrays = _stored(kind)
    keys = tuple(f"{split}/{key}" for key in arrays[f"{split}_keys"])
    return in_memory(arrays[f"{split}_images"], arrays[f"{split}_labels"], keys)
  if kind == "texture":
    images, labels = texture.split(split)
    return in_memory(images, labels, tuple(f"{split}/{i}" for i in range(len(labels))))
  if kind in ("dsprites_loc", "dsprites_ori"):
    latents = _stored("dsprites")[f"{split}_keys"]
    rule = dsprites.location if kind == "dsprites_loc" else dsprites.orientation
    return {
      "labels": rule(latents),
      "keys": tuple(str(i) for i in latents),
      "read": lambda i: Image.fromarray(dsprites.picture(int(latents[i]))),
      "content": lambda: f"dsprites {DRAWING}".encode(),
    }
  task = kind.removeprefix("clevr_")
  count = clevr.COUNTS[split]
  drawn = Drawn(
    f"mini_{kind}_{split}_{DRAWING}",
    count,
    (clevr.SIDE, clevr.SIDE, 3),
    lambda i: clevr.picture(task, split, i),
  )
  return {
    "labels": _clevr_labels(task, split),
    "keys": tuple(f"{split}/{i}" for i in range(count)),
    "read": lambda i: Image.fromarray(drawn(i)),
    "content": lambda: f"clevr {DRAWING}".encode(),
  }


def in_memory(images, labels, keys):
  return {
    "labels": labels.astype(np.int32),
    "keys": keys,
    "read": lambda i: Image.fromarray(images[i]),
    "content": lambda: np.ascontiguousarray(images).tobytes(),
  }


def part(split, name, start, stop):
  """The images start..stop-1 of a split."""
  return Split(
    name=name,
    labels=split.labels[start:stop],
    keys=split.keys[start:stop],
    read=lambda i: split.read(start + i),
    content=split.content,
    size=split.size,
    resize=split.resize,
  )


@functools.cache
def _stored(kind):
  return stored.arrays(f"{kind}.npz")


@functools.cache
def _clevr_labels(task, split):
  labels = [
    clevr.label(task, clevr.depths(task, split, i)) for i in range(clevr.COUNTS[split])
  ]
  return np.asarray(labels, np.int32)
