"""safetensors files: named arrays and a few strings, readable by every framework.

    8 bytes   length n of the header, little endian
    n bytes   json {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {}}
    the rest  the arrays, C order, little endian; offsets count from here

Own reader and writer, so that no further package is needed. The format is that of
https://github.com/huggingface/safetensors (README, "Format"); its rules are held when reading:
the arrays fill the rest without holes or overlap, and no name comes twice.
"""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
from etils import epath

from peft_jax import files

DTYPES = {
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I32": np.dtype("<i4"),
  "I64": np.dtype("<i8"),
  "U8": np.dtype("u1"),
  "F64": np.dtype("<f8"),
  "I16": np.dtype("<i2"),
  "I8": np.dtype("i1"),
  "BOOL": np.dtype("?"),
}
# Bytes. The format allows 100 million, which json could turn into 4 GB of objects; a header takes
# about 100 bytes per array.
LARGEST_HEADER = 1 << 20
METADATA = "__metadata__"


def write(path, arrays, metadata=None):
  """Writes `arrays` {name: array} and `metadata` {str: str} to `path`, atomically.

  The bytes are a function of the arguments alone. Raises ValueError for a dtype not in DTYPES.
  """
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  first = header(arrays, metadata)
  with files.replacing(path) as file:
    file.write(first)
    for name in _stored(arrays):
      file.write(np.asarray(arrays[name], DTYPES[_code(name, arrays[name])]).tobytes())


def size(arrays, metadata=None):
  """The bytes of the file that `write` makes; `arrays` may be shapes (jax.ShapeDtypeStruct)."""
  data = sum(math.prod(a.shape) * DTYPES[_code(name, a)].itemsize for name, a in arrays.items())
  return len(header(arrays, metadata)) + data


def header(arrays, metadata=None):
  """The file up to the first array, padded with spaces to a multiple of 8 bytes."""
  entries, end = {}, 0
  for name in _stored(arrays):
    code, shape = _code(name, arrays[name]), list(arrays[name].shape)
    begin, end = end, end + math.prod(shape) * DTYPES[code].itemsize
    entries[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
  if metadata:
    entries[METADATA] = metadata
  text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  return len(text).to_bytes(8, "little") + text


def _stored(arrays):
  """The names as the file orders their arrays: widest dtype first, so that all lie aligned."""
  return sorted(arrays, key=lambda name: (-np.dtype(arrays[name].dtype).itemsize, name))


def _code(name, array):
  for code, dtype in DTYPES.items():
    if dtype == np.dtype(array.dtype):
      return code
  raise ValueError(f"{name} has dtype {array.dtype}; a safetensors file here holds {_dtypes()}.")


def _dtypes():
  return ", ".join(dtype.name for dtype in DTYPES.values())


def read(path):
  """({name: array}, {metadata}) of a file, in the file's types; the arrays may be read-only.

  Each array is read into memory of its own, so that it can be let go of alone. Raises
  FileNotFoundError, or ValueError in one sentence for a file that is truncated, damaged or no
  safetensors file at all. Nothing in the file is executed.
  """
  path = epath.Path(path)
  if not path.exists() or path.is_dir():
    what = "is a folder, not" if path.is_dir() else "does not exist: it is not"
    raise FileNotFoundError(f"{path} {what} a safetensors file.")
  try:
    with path.open("rb") as file:
      return _decode(file)
  except ValueError as error:
    why = " ".join(str(error).split())[:400]
    raise ValueError(
      f"{path} is no complete safetensors file: {why}. Copy or download it again."
    ) from None


def _decode(file):
  size = file.seek(0, 2)
  file.seek(0)
  if size < 8:
    raise ValueError(f"it has {size} bytes, less than the length of its header")
  length = int.from_bytes(file.read(8), "little")
  if length > LARGEST_HEADER:
    raise ValueError(f"its first 8 bytes announce a header of {length} bytes, far too many")
  if 8 + length > size:
    raise ValueError(f"its header should have {length} bytes, but {size - 8} are there")
  entries = _json(file.read(length))
  metadata = entries.pop(METADATA, {})
  if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
    raise ValueError(f"{METADATA} is not a table of strings")
  available, end = size - 8 - length, 0
  spans = {name: _span(name, entry) for name, entry in entries.items()}
  order = sorted(spans, key=lambda name: spans[name][2:])
  for name in order:
    _, _, begin, stop = spans[name]
    if begin != end:
      kind = "overlaps" if begin < end else "leaves a hole after"
      raise ValueError(f"{name!r} at bytes {begin} to {stop} {kind} the array before it")
    if stop > available:
      raise ValueError(f"{name!r} ends at byte {stop} of {available}")
    end = stop
  if end != available:
    raise ValueError(f"{available - end} bytes at its end belong to no array")
  arrays = dict.fromkeys(sorted(spans))
  for name in order:  # they follow each other in the file
    dtype, shape, begin, stop = spans[name]
    arrays[name] = np.frombuffer(files.take(file, stop - begin), dtype).reshape(shape)
  return arrays, metadata


def _json(text):
  def unique(pairs):
    table = dict(pairs)
    if len(table) != len(pairs):
      raise ValueError("a name comes twice")
    return table

  try:
    entries = json.loads(text.decode(), object_pairs_hook=unique)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"its header is not json ({error})") from None
  if not isinstance(entries, dict):
    raise ValueError("its header is not a table")
  return entries


def _span(name, entry):
  """(dtype, shape, begin, end) of one entry of the header."""
  if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
    raise ValueError(f"the entry of {name!r} is not dtype, shape and data_offsets")
  code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  if not isinstance(code, str) or code not in DTYPES:
    raise ValueError(f"{name!r} has dtype {str(code)[:20]}, which is none of {_dtypes()}")
  for numbers in (shape, offsets):
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
      raise ValueError(f"the shape or offsets of {name!r} are not whole numbers")
  if len(offsets) != 2 or len(shape) > 32:
    raise ValueError(f"{name!r} has {len(offsets)} offsets and {len(shape)} axes")
  need = math.prod(shape) * DTYPES[code].itemsize
  if offsets[1] - offsets[0] != need:
    raise ValueError(
      f"{name!r} of shape {tuple(shape)} needs {need} bytes, not {offsets[1] - offsets[0]}"
    )
  return DTYPES[code], tuple(shape), *offsets
