"""What the readers of published data sets share: where one lies, and whether it is all there."""

import numpy as np
from etils import epath

from peft_jax.data import transforms
from peft_jax.data.image_list import QUICKSTART
from peft_jax.data.split import Split


def find_folder(task, root, holds, layout):
  """The epath.Path of the task's folder: below root by any of its names, or root itself.

  holds: whether a folder (epath.Path) has one of the layouts that the reader knows.
  layout: those layouts in words, for the error that says what to do.
  Raises ValueError when root is None, FileNotFoundError when no such folder is there.
  """
  what_to_do = f"{layout}; or run {QUICKSTART}, which needs no download"
  if root is None:
    raise ValueError(
      f"Task '{task.name}' reads its images from disk and data.root is not set; set it to a folder "
      f"that holds {what_to_do}."
    )
  root = epath.Path(root).expanduser()
  names = (task.name, *task.folders)
  candidates = [*(root / name for name in names), root]
  for folder in candidates:
    if holds(folder):
      return folder
  there = [folder for folder in candidates if folder.is_dir()]
  if not root.exists():
    found = f"there is no folder {root}"
  elif there and there[0] != root:
    found = f"{there[0]} has none of its layouts"
  else:
    found = f"{root} has no folder {' or '.join(names)} and none of its layouts itself"
  raise FileNotFoundError(
    f"Task '{task.name}' was not found: {found}; data.root should hold {what_to_do}."
  )


def make_split(name, folder, keys, labels, size, resize, content):
  """The Split of the images at folder/key; they are decoded without regard to EXIF."""
  return Split(
    name=name,
    labels=np.asarray(labels, np.int32),
    keys=tuple(keys),
    read=lambda i: transforms.decode(folder / keys[i], exif=False),
    content=content,
    size=size,
    resize=resize,
  )


def check_count(task, split, found, expected, where):
  """ValueError unless `found` images of a split are as many as `expected`."""
  if found != expected:
    raise ValueError(
      f"{where} holds {found} images of {split}, but {task.name} has {expected}; fetch it again "
      "(images of your own are task 'folder')."
    )


def check_classes(task, found, where):
  """ValueError unless there are as many classes as the task has."""
  if found != task.num_classes:
    raise ValueError(
      f"{where} has {found} classes, but {task.name} has {task.num_classes}; check that the folder "
      "is this task's and complete."
    )
