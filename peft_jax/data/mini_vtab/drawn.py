"""Pictures drawn when first asked for, kept in memory, and on disk once all are drawn."""

import threading
import zipfile
import zlib

import numpy as np

from peft_jax import files


class Drawn:
  """images(i) -> uint8 array of `shape`; `draw(i)` is called once per picture.

  name: of the file in the cache folder; change it when the drawing changes. A file that cannot be
  read back is ignored and written again; a folder that cannot be written is ignored.
  """

  def __init__(self, name, count, shape, draw):
    self.path = files.cache_folder() / f"{name}.npz"
    self.shape = (count, *shape)
    self.draw = draw
    self.images = None
    self.missing = None
    self.lock = threading.Lock()

  def __call__(self, index):
    with self.lock:
      if self.images is None:
        self.images = self._load()
        self.missing = set() if self.images is not None else set(range(self.shape[0]))
        if self.images is None:
          self.images = np.empty(self.shape, np.uint8)
      if index in self.missing:
        self.images[index] = self.draw(index)
        self.missing.remove(index)
        if not self.missing:
          self._save()
      return self.images[index]

  def _load(self):
    try:
      with np.load(self.path, allow_pickle=False) as file:
        images = file["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
      return None
    return images if images.shape == self.shape and images.dtype == np.uint8 else None

  def _save(self):
    try:
      with files.replacing(self.path) as file:
        np.savez_compressed(file, images=self.images)
    except OSError:
      pass
