"""Flat dictionaries of arrays in `.npz` files. Nothing is ever unpickled."""

import ast
import hashlib
import math
import re

import ml_dtypes
import numpy as np
from etils import epath

from peft_jax import files
from peft_jax.weights import archive

LARGEST_HEADER = 4096  # bytes, of one array


def read(path):
  """{name: array} of the `.npz` file at `path`.

  float16, float64 and bfloat16 (which NumPy stores as 2-byte voids) are turned into float32;
  other types stay. Raises FileNotFoundError, or ValueError naming the file when it is damaged or
  holds anything but numbers.
  """
  path = epath.Path(path)
  with files.refusing(path, "damaged or no .npz file"), path.open("rb") as file:
    out = {}
    for name, member in archive.members(file).items():
      if not name.endswith(".npy"):
        raise ValueError(f"its member {name[:80]!r} is no array")
      try:
        out[name.removesuffix(".npy")] = as_float32(array(archive.read(file, member)))
      except ValueError as error:
        raise ValueError(f"{name[:80]!r}: {error}") from None
    return out


def array(data):
  """The array of a .npy file's bytes: mark, version, length of a Python literal, it, numbers."""
  if bytes(data[:6]) != b"\x93NUMPY" or len(data) < 12:
    raise ValueError("it does not begin as a .npy file does")
  start = 10 if data[6] == 1 else 12
  length = int.from_bytes(data[8:start], "little")
  if length > LARGEST_HEADER or start + length > len(data):
    raise ValueError(f"its header would have {length} bytes")
  try:
    header = ast.literal_eval(bytes(data[start : start + length]).decode("latin1").strip())
    code, fortran, shape = (header[k] for k in ("descr", "fortran_order", "shape"))
  except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
    raise ValueError("its header cannot be read") from None
  if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?([biuf]\d{1,2}|V2)", code):
    raise ValueError(f"it holds {str(code)[:20]!r}, not numbers")
  try:
    dtype = np.dtype(code)
  except TypeError:
    raise ValueError(f"it holds {code!r}, which is no type of number") from None
  if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
    raise ValueError("its shape is no tuple of whole numbers from 0")
  if len(shape) > 32 or math.prod(shape) * dtype.itemsize != len(data) - start - length:
    raise ValueError(f"its shape {str(shape)[:80]} does not go with its "
                     f"{len(data) - start - length} bytes")
  numbers = np.frombuffer(data, dtype, offset=start + length)
  return numbers.reshape(shape, order="F" if fortran else "C")


def as_float32(array):
  """float16, float64 and bfloat16 (2-byte voids in NumPy's files) as float32, others unchanged."""
  if array.dtype == np.dtype("V2"):
    array = array.view(ml_dtypes.bfloat16)
  elif array.dtype != ml_dtypes.bfloat16 and not np.issubdtype(array.dtype, np.floating):
    return array
  return array.astype(np.float32, copy=False)


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
