"""The user's own images, one folder a class.

    <root>/train/<class>/*.jpg  and  <root>/val/<class>/*  or  <root>/test/<class>/*  or all three
    <root>/<class>/*            then every fifth image is held out as "val", chosen by name

Classes are the sorted names of the folders. Photographs are turned as their EXIF tag says.
"""

import concurrent.futures
import hashlib

import numpy as np
from etils import epath
from PIL import Image

from peft_jax.data import transforms
from peft_jax.data.image_list import file_sizes
from peft_jax.data.split import Dataset, Split

SUFFIXES = (
  ".jpg .jpeg .jfif .png .bmp .gif .tif .tiff .webp .ppm .pgm .pbm .pnm .jp2 .avif".split()
)
HELD_OUT = {"val": ("val", "validation", "valid"), "test": ("test",)}  # split -> folder names
LAYOUT = "one folder a class, or train/ and val/ with one folder a class in each"


def open_folder(root, size, resize):
  """The Dataset "folder"; every image's header is read, so that a broken file is named now."""
  if root is None:
    raise ValueError(
      "Task 'folder' needs data.root (--config.data.root=PATH): the folder with your images, "
      f"{LAYOUT}."
    )
  root = epath.Path(root).expanduser()
  if not root.is_dir():
    raise FileNotFoundError(f"data.root {root} is not a folder; it should hold {LAYOUT}.")
  parts = split_layout(root) or flat_layout(root)
  classes = sorted({name for part in parts.values() for name, _ in part})
  if len(classes) < 2:
    raise ValueError(
      f"{root} holds one class, '{classes[0]}'; a classifier needs two or more folders."
    )
  splits = {
    name: make_split(name, root, part, classes, size, resize) for name, part in parts.items()
  }
  for split in splits.values():
    check_headers([root / key for key in split.keys])
  return Dataset(
    name="folder",
    group="folder",
    num_classes=len(classes),
    class_names=tuple(classes),
    splits=splits,
    train_split="train",
    eval_split="test" if "test" in splits else "val",
    source=str(root),
  )


def split_layout(root):
  """{"train": [(class, path)], ...}, or None when root/train has no class folders in it."""
  if not (root / "train").is_dir() or not folders(root / "train"):
    return None
  parts = {"train": labelled(root / "train")}
  for split, names in HELD_OUT.items():
    for name in names:
      if split not in parts and (root / name).is_dir():
        parts[split] = labelled(root / name)
  if len(parts) == 1:
    raise ValueError(
      f"{root} has train/ but neither val/ nor test/; add one, or point data.root at "
      f"{root / 'train'} to hold out every fifth image."
    )
  return parts


def flat_layout(root):
  """{"train": ..., "val": ...}: of each class, the fifth with the smallest MD5(class/file)."""
  parts = {"train": [], "val": []}
  by_class = {}
  for name, path in labelled(root):
    by_class.setdefault(name, []).append(path)
  for name, paths in by_class.items():
    paths.sort(key=lambda path: hashlib.md5(f"{name}/{path.name}".encode()).digest())
    held_out = max(len(paths) // 5, min(1, len(paths) - 1))
    parts["val"] += sorted((name, path) for path in paths[:held_out])
    parts["train"] += sorted((name, path) for path in paths[held_out:])
  if not parts["val"]:
    raise ValueError(
      f"{root} holds one image a class; two or more are needed to hold one out as 'val'."
    )
  return parts


def folders(folder):
  """The class folders in `folder`, sorted; hidden ones are not classes."""
  return sorted(
    path
    for path in folder.iterdir()
    if path.is_dir() and not path.name.startswith(".") and path.name != "__MACOSX"
  )


def labelled(folder):
  """[(class, path)] of the images below `folder`, sorted by class, then by file name."""
  classes = folders(folder)
  if not classes:
    raise ValueError(f"{folder} holds no class folders; it should hold {LAYOUT}.")
  found = []
  for path in classes:
    images = sorted(
      file
      for file in path.iterdir()
      if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not images:
      raise ValueError(
        f"The class folder {path} holds no image ({' '.join(SUFFIXES)}); "
        "put its images directly into it or remove it."
      )
    found += [(path.name, file) for file in images]
  return found


def make_split(name, root, part, classes, size, resize):
  paths = [path for _, path in part]
  number = {name: i for i, name in enumerate(classes)}
  return Split(
    name=name,
    labels=np.asarray([number[name] for name, _ in part], np.int32),
    keys=tuple(path.relative_to(root).as_posix() for path in paths),
    read=lambda i: transforms.decode(paths[i], exif=True),
    content=lambda: file_sizes(paths),
    size=size,
    resize=resize,
  )


def check_headers(paths):
  """ValueError naming the first file that is not an image; pixels are not decoded."""

  def check(path):
    try:
      with path.open("rb") as file, Image.open(file):
        pass
    except transforms.UNREADABLE as error:
      raise transforms.cannot_read(path, error) from error

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for _ in pool.map(check, paths):
      pass
