"""ImageNet-1k (ILSVRC 2012) as a tree of class folders, in the layout that torchvision reads.

    <folder>/train/<wnid>/*.JPEG    1,281,167 images
    <folder>/val/<wnid>/*.JPEG      50,000 images, sorted into folders as those of train

A label is the place of the folder among the sorted wnids, n01440764 to n15075141. A split's names
are listed when the split is first asked for, so that an evaluation does not list train. Files are
neither opened nor measured: one that is damaged is named when it is read, and the fingerprint
follows names and numbers of the images, not their sizes.
"""

import numpy as np

from peft_jax.data import class_tree, on_disk
from peft_jax.data.split import Lazy, of_task

LAYOUT = "train/ and val/ (one of them is enough to use that alone) with one folder a wnid in each"


def open_task(task, root, size, resize):
  """The Dataset of `task`, the table's row, below `root`; class folders are checked now.

  Raises ValueError or FileNotFoundError for what is missing; for a wrong number of images when
  their split is opened.
  """
  folder = on_disk.find_folder(task, root, holds, LAYOUT)
  wnids = {name: class_tree.classes(folder / name) for name in task.sizes}
  for name in task.sizes:
    if not wnids[name] and (folder / name).is_dir():
      raise ValueError(
        f"{folder / name} holds no class folders; sort its images into folders named by wnid, as "
        "valprep.sh of https://github.com/soumith/imagenetloader.torch does for val."
      )
  wnids = {name: found for name, found in wnids.items() if found}
  for name, found in wnids.items():
    on_disk.check_classes(task, len(found), folder / name)
  classes = class_tree.common([folder / name for name in wnids])

  def make(name):
    found = class_tree.images(folder / name, classes)
    on_disk.check_count(task, name, sum(map(len, found)), task.sizes[name], folder / name)
    keys = [f"{name}/{c}/{file}" for c, files in zip(classes, found, strict=True) for file in files]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in found])
    return on_disk.make_split(name, folder, keys, labels, size, resize, lambda: b"")

  splits = Lazy({name: lambda name=name: make(name) for name in wnids})
  return of_task(task, splits, str(folder), classes)


def holds(folder):
  return any((folder / name).is_dir() for name in ("train", "val"))
