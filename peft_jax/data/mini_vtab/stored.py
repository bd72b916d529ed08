"""The files stored in this folder, read through importlib.resources."""

import importlib.resources
import io

import numpy as np
from PIL import Image


def arrays(name):
  """{array name: array} of an npz file; nothing is ever unpickled."""
  with np.load(io.BytesIO(_bytes(name)), allow_pickle=False) as file:
    return dict(file)


def picture(name):
  """The Pillow image of a png file."""
  image = Image.open(io.BytesIO(_bytes(name)))
  image.load()
  return image


def _bytes(name):
  return (importlib.resources.files("peft_jax.data") / "mini_vtab" / name).read_bytes()
