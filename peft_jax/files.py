"""Files that are there whole or not at all, the cache folder, and digests of arrays."""

import contextlib
import hashlib
import mmap
import os
import pathlib
import uuid

import numpy as np
from etils import epath

PAGES = 1 << 20  # bytes from which a read has pages of its own


@contextlib.contextmanager
def replacing(path):
  """A binary file to write that takes the place of `path` when the block ends without an error.

  It lies beside `path` under a temporary name until then, and is forced to disk before it is
  renamed. The folder is made where it is missing.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part"
  try:
    with part.open("wb") as file:
      yield file
    to_disk(part)
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


@contextlib.contextmanager
def refusing(path, what):
  """Within it a ValueError becomes one short sentence "PATH is WHAT: ...", in one line."""
  try:
    yield
  except ValueError as error:
    why = " ".join(str(error).split())
    raise ValueError(f"{path} is {what}: {why[:400]}.") from None


def take(file, n):
  """The next n bytes of an open binary file; ValueError when there are fewer.

  Many of them come in pages of their own, which go back to the system when they are let go of; the
  allocator would keep a part of them, a tenth of a large file over all its arrays.
  """
  if n < PAGES or not hasattr(file, "readinto"):  # a bucket's files have no readinto
    data = file.read(n)
    got = len(data)
  else:
    data, got = mmap.mmap(-1, n), 0
    while got < n and (more := file.readinto(memoryview(data)[got:])):
      got += more
  if got != n:
    raise ValueError(f"it ends {n - got} bytes too early")
  return data


def to_disk(path):
  """Forces a local file to disk; a bucket's objects are there once they are closed."""
  if "://" not in str(path):
    handle = os.open(path, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)


def cache_folder():
  """$PEFT_JAX_CACHE, else ~/.cache/peft_jax. Nothing in it is ever needed: it saves time."""
  return pathlib.Path(os.environ.get("PEFT_JAX_CACHE") or "~/.cache/peft_jax").expanduser()


def digest(arrays):
  """SHA-256 over name, type, shape and bytes of {name: array}, in the order of the names."""
  total = hashlib.sha256()
  for name in sorted(arrays):
    array = np.asarray(arrays[name])
    total.update(f"{name} {array.dtype} {array.shape}\n".encode())
    total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return total.hexdigest()
