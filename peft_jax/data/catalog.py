"""From a task's name to its Dataset."""

from peft_jax.data import (
  cifar100,
  class_folder,
  fgvc,
  image_list,
  imagenet,
  mini_pretrain,
  mini_vtab,
  tasks,
  transforms,
)

OUTSIDE = ("folder", mini_pretrain.NAME)  # tasks that are no row of the table
READERS = {  # task -> what reads its images from disk
  **{task.name: image_list for task in tasks.VTAB},
  **{task.name: fgvc for task in tasks.FGVC},
  "cifar100_full": cifar100,
  "imagenet": imagenet,
}


def open(task, *, root=None, size, resize="bicubic_pil"):
  """The Dataset of `task`, checked; no image is decoded yet.

  task: a name of the table (`tasks.TASKS`), "folder" for the user's own images, or
    "mini_pretrain".
  root: the user's folder, the one that holds vtab-1k, or the one that holds the data set's folder,
    or that folder itself; not used by the embedded mini_ tasks.
  size, resize: of the images its splits return, see transforms.
  Raises ValueError or FileNotFoundError in one sentence for what does not fit.
  """
  transforms.check(resize)
  if isinstance(size, bool) or not isinstance(size, int) or size < 1:
    raise ValueError(f"An image size is a positive number of pixels, not {size!r}.")
  if task == "folder":
    return class_folder.open_folder(root, size, resize)
  if task == mini_pretrain.NAME:
    return mini_pretrain.open_task(size, resize)
  row = tasks.find(task)
  if row.embedded:
    return mini_vtab.open_task(row, size, resize)
  return READERS[row.name].open_task(row, root, size, resize)
