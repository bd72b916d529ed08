"""Published data sets as trees, <folder>/<class>/<image>, of up to millions of files.

Unlike class_folder, which reads the user's own images, no file is opened and none is asked for its
size: a million names are listed in seconds, and a file that is no image is named when it is read.
"""

import os

from peft_jax.data.class_folder import HELD_OUT, SUFFIXES

ENDINGS = tuple(SUFFIXES)


def classes(folder):
  """The names of the class folders in `folder`, in label order; none if it is no folder.

  Numbers ("1", "2", .., "10") are in the order of numbers, as timm has them, other names in that
  of their characters. Hidden folders are no classes.
  """
  if not folder.is_dir():
    return ()
  with os.scandir(folder) as entries:
    names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
  return tuple(sorted(names, key=int if all(map(str.isdecimal, names)) else None))


def held_out(folder):
  """The folders in `folder` that hold images back: {"val": path, "test": path}, or fewer."""
  found = {}
  for split, names in HELD_OUT.items():
    there = [folder / name for name in names if classes(folder / name)]
    if there:
      found[split] = there[0]
  return found


def common(folders):
  """The class names, in label order, of all `folders` (paths); ValueError where they differ."""
  first, *others = folders
  names = classes(first)
  for other in others:
    if odd := sorted(set(names) ^ set(classes(other))):
      raise ValueError(
        f"{first} and {other} do not hold the same classes: '{odd[0]}' is in one of them only; "
        "fetch both again."
      )
  return names


def images(folder, names):
  """([name of an image, ...] of each class folder in `names`), sorted.

  Raises ValueError naming a class folder that holds none.
  """
  found = []
  for name in names:
    with os.scandir(folder / name) as entries:
      here = [e.name for e in entries if e.name.lower().endswith(ENDINGS) and e.name[0] != "."]
    if not here:
      raise ValueError(f"The class folder {folder / name} holds no image; fetch it again.")
    found.append(sorted(here))
  return found


def keys_and_labels(folder, names):
  """(["<folder's name>/<class>/<image>", ...], [its class's place in `names`, ...])."""
  found = images(folder, names)
  top = folder.name
  keys = [f"{top}/{name}/{file}" for name, here in zip(names, found, strict=True) for file in here]
  labels = [label for label, here in enumerate(found) for _ in here]
  return keys, labels
