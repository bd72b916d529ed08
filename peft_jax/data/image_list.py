"""VTAB-1k as folders of image lists: what NOAH, SPT, SSF and SAN users hold.

    <root>/<task>/{train800,val200,train800val200,test}.txt    lines `<path in the folder> <label>`
    <root>/<task>/images/...

The images are TFDS's, re-encoded as JPEG for every task; the sets are TFDS's, the order is not
(NOAH: data/vtab-source/get_vtab1k.py). <task> is any name of the task table. Lists that are not
asked for may be missing; train800val200 is then the other two, one after the other.
"""

import numpy as np
from etils import epath

from peft_jax.data import transforms
from peft_jax.data.split import Split, concatenate, of_task

LISTS = ("train800", "val200", "train800val200", "test")
QUICKSTART = "`python train.py --config=configs/quickstart.py`"


def open_task(task, root, size, resize):
  """The Dataset of `task`, a row of the table, below `root`; lists and file names are checked."""
  folder = find_folder(task, root)
  splits = {}
  for name in LISTS:
    if (folder / f"{name}.txt").exists():
      splits[name] = read_list(task, folder, name, size, resize)
  if "train800val200" not in splits and {"train800", "val200"} <= splits.keys():
    both = concatenate("train800val200", splits["train800"], splits["val200"])
    splits["train800val200"] = both
  return of_task(task, splits, str(folder))


def find_folder(task, root):
  """The epath.Path of the task's folder: below root, below root/vtab-1k, or root itself."""
  names = (task.name, *task.folders)
  if root is None:
    raise ValueError(
      f"Task '{task.name}' reads its images from disk and data.root is not set; "
      f"{what_to_do(task)}."
    )
  root = epath.Path(root).expanduser()
  candidates = [base / name for base in (root, root / "vtab-1k") for name in names]
  if root.name in names:
    candidates.append(root)
  for folder in candidates:
    if any((folder / f"{name}.txt").exists() for name in LISTS):
      return folder
  there = [folder for folder in candidates if folder.is_dir()]
  if there:
    found = f"{there[0]} holds none of the lists {', '.join(f'{name}.txt' for name in LISTS)}"
  elif root.exists():
    found = f"{root} has no folder {' or '.join(names)}"
  else:
    found = f"there is no folder {root}"
  raise FileNotFoundError(f"Task '{task.name}' was not found: {found}; {what_to_do(task)}.")


def what_to_do(task):
  return (
    "fetch the VTAB-1k image lists, or make them with data/vtab-source/get_vtab1k.py of "
    "https://github.com/ZhangYuanhan-AI/NOAH, so that "
    f"<data.root>/{task.name}/train800val200.txt and .../images/ exist, and set data.root; "
    f"or run {QUICKSTART}, which needs no download"
  )


def read_list(task, folder, name, size, resize):
  """One list as a Split; ValueError or FileNotFoundError naming the line that does not fit."""
  file = folder / f"{name}.txt"
  keys, labels = [], []
  text = file.read_bytes().decode("utf-8-sig")
  for number, line in enumerate(text.splitlines(), 1):
    line = line.strip()
    if not line:
      continue
    path, _, label = line.rpartition(" ")
    if not path or not label.isdecimal():
      raise ValueError(f"{file}, line {number}: expected '<image path> <label>', found '{line}'.")
    if int(label) >= task.num_classes:
      raise ValueError(
        f"{file}, line {number}: label {label}, but {task.name} has the classes "
        f"0..{task.num_classes - 1}; check that the folder is this task's."
      )
    keys.append(path.rstrip())
    labels.append(int(label))
  if len(keys) != task.sizes[name]:
    raise ValueError(
      f"{file} lists {len(keys)} images, but {name} of {task.name} has {task.sizes[name]}; "
      "fetch the list again."
    )
  paths = [folder / key for key in keys]
  check_files(file, paths)
  return Split(
    name=name,
    labels=np.asarray(labels, np.int32),
    keys=tuple(keys),
    read=lambda i: transforms.decode(paths[i], exif=False),
    content=lambda: file_sizes(paths),
    size=size,
    resize=resize,
  )


def check_files(file, paths):
  """FileNotFoundError for the first path that is not there; lists each folder only once."""
  names = {}
  for folder in {path.parent for path in paths}:
    names[folder] = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
  for path in paths:
    if path.name not in names[path.parent] and not path.exists():
      raise FileNotFoundError(f"{file} lists {path}, which does not exist; fetch the images again.")


def file_sizes(paths):
  return np.asarray([path.stat().length for path in paths], "<i8").tobytes()
