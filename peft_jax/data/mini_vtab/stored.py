"""The files stored in the embedded tasks' folders, read through importlib.resources."""

import importlib.resources
import io

import numpy as np
from PIL import Image


def arrays(name, folder="mini_vtab"):
  """{array name: array} of an npz file; nothing is ever unpickled."""
  with np.load(io.BytesIO(_bytes(name, folder)), allow_pickle=False) as file:
    return dict(file)


def picture(name, folder="mini_vtab"):
  """The Pillow image of a png file."""
  image = Image.open(io.BytesIO(_bytes(name, folder)))
  image.load()
  return image


def _bytes(name, folder):
  return (importlib.resources.files("peft_jax.data") / folder / name).read_bytes()
