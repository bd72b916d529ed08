"""A tuned model ready to use: from images and files to class names and probabilities."""

from __future__ import annotations

import dataclasses
import functools
import os

import jax
import numpy as np
from etils import epath
from PIL import Image

from peft_jax import data
from peft_jax.data import transforms
from peft_jax.models.layers import fold_norms
from peft_jax.tuned import Tuned

BATCH = 32  # images at once; memory, not results, depends on it


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
  """What peft_jax.load returns.

  tuned, variables: tuned.apply(variables, images) gives logits; header: of the adapter file.
  """

  tuned: Tuned
  variables: dict = dataclasses.field(repr=False)
  header: dict

  def logits(self, images):
    """float32 [B, K] of images, prepared as they were in training.

    images: Pillow images, or uint8 arrays [H, W, 3], of any size, one or a list; uint8
      [B, H, W, 3]; or floating point [B, S, S, 3] (or one [S, S, 3]) that is normalised already.
    Raises ValueError for anything else.
    """
    return self._in_batches(self.tuned.apply, self.variables, images)

  def merging_error(self, images, params=None):
    """(largest difference between logits with methods and merged, largest logit) on `images`.

    params: the merged parameters, when they are at hand.
    """
    params = self.merged() if params is None else params
    plain = self._in_batches(self.tuned.model.apply, {"params": params}, images)
    logits = self.logits(images)
    return float(abs(plain - logits).max()), float(abs(logits).max())

  def _in_batches(self, function, variables, images):
    images, how = self._prepared(images), self.header["preprocessing"]["normalize"]
    parts = []
    for start in range(0, len(images), BATCH):
      some = images[start : start + BATCH]
      padding = [(0, BATCH - len(some) if start else 0)] + [(0, 0)] * 3
      y = _compiled(function, how)(variables, np.pad(some, padding))
      parts.append(np.asarray(y)[: len(some)])
    return np.concatenate(parts).astype(np.float32)

  def _prepared(self, images):
    """uint8 or float32 [B, S, S, 3], B > 0."""
    if isinstance(images, Image.Image):
      images = [images]
    if hasattr(images, "ndim") and images.ndim == 3:
      images = images[None]
    if hasattr(images, "dtype") and np.issubdtype(images.dtype, np.floating):
      return np.asarray(images, np.float32)
    side, how = (self.header["preprocessing"][name] for name in ("image_size", "resize"))
    ready = []
    for image in images:
      if not isinstance(image, Image.Image):
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
          raise ValueError(
            f"An image is a Pillow image, uint8 [H, W, 3] or a normalised floating point batch "
            f"[B, {side}, {side}, 3], not {image.dtype}{list(image.shape)}."
          )
        image = Image.fromarray(image)
      image = transforms.resize(transforms.eight_bit(image), side, how)
      ready.append(image if image.ndim == 3 else np.repeat(image[:, :, None], 3, 2))
    if not ready:
      raise ValueError("There is no image to predict; give one or more.")
    return np.stack(ready)

  @property
  def labels(self):
    """A name for each class: the file's, or the class's number as text."""
    names = self.header["class_names"]
    return tuple(names or map(str, range(self.header["model"]["num_classes"])))

  def predict(self, paths):
    """[(label, probability), ...], the likeliest class of each image file.

    paths: one path or several; photographs are turned as their EXIF tag says.
    Raises ValueError naming an image that cannot be read.
    """
    return [best[0] for best in self.rank(paths, 1)]

  def rank(self, paths, top=3):
    """For each image file the `top` likeliest classes, [(label, probability), ...] falling."""
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    ranked = []
    for start in range(0, len(paths), BATCH):
      images = [read_image(path) for path in paths[start : start + BATCH]]
      for row in jax.nn.softmax(self.logits(images)):
        row = np.asarray(row)
        best = np.argsort(-row, kind="stable")[:top]
        ranked.append([(self.labels[i], float(row[i])) for i in best])
    return ranked

  def merged(self):
    """The backbone's parameter tree with the methods folded in: model.apply({"params": ...}).

    The norms of a head of several layers are folded in, too.
    """
    return fold_norms(self.tuned.merge(self.variables), self.variables.get("batch_stats", {}))


@functools.cache
def _compiled(function, normalize):
  """function(variables, images) on uint8 or normalised images."""

  def apply(variables, images):
    if images.dtype == np.uint8:
      images = data.normalize(images, normalize)
    return function(variables, images)

  return jax.jit(apply)


def read_image(path):
  """The Pillow image in a file; FileNotFoundError or ValueError naming it."""
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"There is no image {path}.")
  return transforms.decode(path, exif=True)
