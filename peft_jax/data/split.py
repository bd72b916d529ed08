"""Dataset, its splits, and the order in which tensorflow-datasets stores examples."""

import collections.abc
import concurrent.futures
import dataclasses
import functools
import hashlib
import os

import numpy as np

from peft_jax.data import transforms


def tfds_order(keys, split):
  """`keys` sorted as tensorflow-datasets stores a split: by MD5(split name + key).

  keys: the examples' keys (int or str). split: the name TFDS prepares them under, e.g. "train".
  Slices such as "train[:800]" index this order, so VTAB-1k is a pure function of the key list.
  TFDS core/shuffle.py (get_bucket_number).
  """
  salt = hashlib.md5(split.encode())

  def place(key):
    digest = salt.copy()
    digest.update(str(key).encode())
    return digest.digest()

  return sorted(keys, key=place)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Labelled images, decoded when asked for.

  labels: int32 [N]. keys: N strings, unique within the task (a path, an example's key).
  read(i): Pillow image i, mode L or RGB, in its native size. size: side in pixels after `resize`.
  content(): bytes that change when the images do; for folders the file sizes.
  """

  name: str
  labels: np.ndarray
  keys: tuple[str, ...]
  read: collections.abc.Callable
  content: collections.abc.Callable
  size: int
  resize: str

  def __len__(self):
    return len(self.labels)

  def images(self, indices=None):
    """uint8 [n, size, size, 3] of the images at `indices` (all of them by default), on the host.

    Raises IndexError for an index outside 0..N-1, ValueError naming a file that cannot be decoded.
    """
    return self._made(indices, lambda _, image: transforms.resize(image, self.size, self.resize))

  def views(self, indices, view, draws):
    """uint8 [n, size, size, 3]: view(image, size, draws[i]) of the image at indices[i].

    view: a peft_jax.data.view.View. Raises as `images` does.
    """
    return self._made(indices, lambda row, image: view(image, self.size, draws[row]))

  def _made(self, indices, make):
    """The images that make(row, Pillow image) gives, by several threads."""
    indices = np.arange(len(self)) if indices is None else np.asarray(indices)
    if indices.size and not (0 <= indices.min() and indices.max() < len(self)):
      raise IndexError(
        f"Split '{self.name}' holds images 0..{len(self) - 1}; asked for "
        f"{indices.min()}..{indices.max()}."
      )
    out = np.empty((len(indices), self.size, self.size, 3), np.uint8)

    def fill(row):
      image = make(row, self.read(int(indices[row])))
      out[row] = image if image.ndim == 3 else image[:, :, None]

    workers = min(8, os.cpu_count() or 1, len(indices) // 4)
    if workers < 2:
      for row in range(len(indices)):
        fill(row)
    else:
      with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        collections.deque(pool.map(fill, range(len(indices))), maxlen=0)
    return out


def concatenate(name, first, second):
  """The images of `first`, then those of `second`: VTAB's train800val200, FGVC's trainval."""
  return dataclasses.replace(
    first,
    name=name,
    labels=np.concatenate([first.labels, second.labels]),
    keys=first.keys + second.keys,
    read=lambda i: first.read(i) if i < len(first) else second.read(i - len(first)),
    content=lambda: first.content() + second.content(),
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """One classification task: names and splits; nothing is decoded until `Split.images`.

  class_names: num_classes strings, or None where the source does not give them.
  splits: name -> Split. VTAB: train800, val200, train800val200, test; FGVC: train, val, trainval,
    test; CIFAR-100: train, test; ImageNet: train, val; folders: train, val, test.
  train_split, eval_split: the pair a final run uses when the config names none.
  source: where the images come from, for the run's log.
  """

  name: str
  group: str
  num_classes: int
  class_names: tuple[str, ...] | None
  splits: collections.abc.Mapping[str, Split]
  train_split: str
  eval_split: str
  source: str

  def split(self, name):
    """The split called `name`; raises ValueError listing the ones there are."""
    if name not in self.splits:
      raise ValueError(
        f"Task '{self.name}' ({self.source}) has no split '{name}'; "
        f"it has {', '.join(self.splits)}."
      )
    return self.splits[name]

  def fingerprint(self):
    """Hex SHA-256 of name, class count, split names, keys, labels and the splits' content."""
    digest = hashlib.sha256(f"{self.name}\n{self.num_classes}\n".encode())
    for name, split in sorted(self.splits.items()):
      digest.update(f"{name} {len(split)}\n".encode())
      digest.update("\n".join(split.keys).encode())
      digest.update(split.labels.astype("<i4").tobytes())
      digest.update(split.content())
    return digest.hexdigest()


class Lazy(collections.abc.Mapping):
  """Split name -> Split, each made when it is first asked for.

  makers: split name -> a function of nothing that makes the Split.
  """

  def __init__(self, makers):
    self._makers = {name: functools.cache(make) for name, make in makers.items()}

  def __getitem__(self, name):
    return self._makers[name]()

  def __contains__(self, name):
    return name in self._makers

  def __iter__(self):
    return iter(self._makers)

  def __len__(self):
    return len(self._makers)


def of_task(task, splits, source, class_names=None):
  """The Dataset of a row of the task table; class_names: the row's where None is given."""
  return Dataset(
    name=task.name,
    group=task.group,
    num_classes=task.num_classes,
    class_names=class_names or task.class_names,
    splits=splits,
    train_split=task.train_split,
    eval_split=task.eval_split,
    source=source,
  )
