"""CIFAR-100, all 60,000 images: the published binary version, or a tree of class folders.

    <folder>/train.bin, test.bin            cifar-100-binary.tar.gz, unpacked. A record: the coarse
                                            label, the fine label, then 32 x 32 bytes each of red,
                                            green and blue, row by row
    <folder>/{train,test}/<class>/*         or val/ for test/; sorted or numbered class folders

Labels are the fine ones, which are in the order of their names. The Python version is pickled, and
unpickling runs what the file says, so it is not read.
"""

import numpy as np
from PIL import Image

from peft_jax.data import class_tree, on_disk
from peft_jax.data.image_list import file_sizes
from peft_jax.data.split import Split, of_task

SIDE = 32
RECORD = 2 + 3 * SIDE * SIDE  # bytes
BINARY = {"train": "train.bin", "test": "test.bin"}
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
LAYOUT = (
  f"cifar-100-binary/ with train.bin and test.bin (unpack {ADDRESS}), or train/ and test/ that "
  "hold one folder a class"
)


def open_task(task, root, size, resize):
  """The Dataset of `task`, the table's row, below `root`.

  Raises ValueError or FileNotFoundError for what is missing, of another size or pickled.
  """
  folder = on_disk.find_folder(task, root, holds, LAYOUT)
  if is_binary(folder):
    splits = {name: binary(task, name, folder, size, resize) for name in BINARY}
    return of_task(task, splits, str(folder))
  if not class_tree.classes(folder / "train"):
    raise ValueError(
      f"{folder} holds CIFAR-100's Python version, which is pickled and not read; fetch the binary "
      f"version, {ADDRESS}, and unpack it there."
    )
  return trees(task, folder, size, resize)


def holds(folder):
  return is_binary(folder) or bool(class_tree.classes(folder / "train")) or is_pickled(folder)


def is_binary(folder):
  return any((folder / file).exists() for file in BINARY.values())


def is_pickled(folder):
  """Whether the folder, or cifar-100-python/ in it, holds the pickled files train and test."""
  places = (folder, folder / "cifar-100-python")
  return any((p / "train").is_file() and (p / "test").is_file() for p in places)


def binary(task, name, folder, size, resize):
  """One split of the binary version."""
  file = folder / BINARY[name]
  if not file.exists():
    raise FileNotFoundError(f"There is no {file}; unpack {ADDRESS} again.")
  content = file.read_bytes()
  count, rest = divmod(len(content), RECORD)
  if rest:
    raise ValueError(
      f"{file} has {len(content)} bytes, {rest} more than {count} records of {RECORD}; unpack "
      f"{ADDRESS} again."
    )
  on_disk.check_count(task, name, count, task.sizes[name], file)
  records = np.frombuffer(content, np.uint8).reshape(count, RECORD)
  labels = records[:, 1].astype(np.int32)
  if labels.max() >= task.num_classes:
    place = int(labels.argmax())
    raise ValueError(
      f"{file}: record {place} has the fine label {labels[place]}, but {task.name} has the classes "
      f"0..{task.num_classes - 1}; unpack {ADDRESS} again."
    )
  pixels = records[:, 2:].reshape(count, 3, SIDE, SIDE)
  return Split(
    name=name,
    labels=labels,
    keys=tuple(f"{name}/{i}" for i in range(count)),
    read=lambda i: Image.fromarray(np.ascontiguousarray(pixels[i].transpose(1, 2, 0))),
    content=lambda: content,
    size=size,
    resize=resize,
  )


def trees(task, folder, size, resize):
  """The Dataset of the class folders."""
  held_out = class_tree.held_out(folder)
  if len(held_out) != 1:
    raise ValueError(
      f"{folder} has {' and '.join(['train', *held_out])} with class folders, but {task.name} is "
      "train/ and test/; fetch it again or take one folder away."
    )
  folders = {"train": folder / "train", "test": next(iter(held_out.values()))}
  names = class_tree.common(folders.values())
  on_disk.check_classes(task, len(names), folder)
  splits = {}
  for name, path in folders.items():
    keys, labels = class_tree.keys_and_labels(path, names)
    on_disk.check_count(task, name, len(keys), task.sizes[name], path)
    content = lambda keys=keys: file_sizes([folder / key for key in keys])  # noqa: E731
    splits[name] = on_disk.make_split(name, folder, keys, labels, size, resize, content)
  given = None if all(map(str.isdecimal, names)) else names
  return of_task(task, splits, str(folder), given)
