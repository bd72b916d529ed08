"""Tensors of files that torch.save wrote (.pth, .pt, .bin, .pth.tar), read without torch.

Since torch 1.6 a zip file with one folder: `data.pkl`, a pickle in which tensors name their
storages, `data/KEY`, one member per storage, not packed, and `byteorder`. Before that, in a row:

    magic number, version, system     three pickles
    the object                        a pickle as above
    keys                              a pickle, the storages in the order in which they follow
    storage                           8 bytes number of elements, then they; for each key

The pickles are read by `pickled`, which runs nothing. Storages of tensors that are wanted are read
one by one, so that loading takes the memory of the tensors.
"""

import math

import ml_dtypes
import numpy as np
from etils import epath

from peft_jax import files
from peft_jax.weights import archive, pickled
from peft_jax.weights.npz import as_float32

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little")  # how a file of the old form begins
LARGEST_PICKLE = 4 << 20  # bytes
SMALL = 16 << 20
# The state dict's name where a file holds more than it.
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_ema")


def read(path):
  """{name: array} of the state dict in the file at `path`.

  float16, bfloat16 and float64 are turned into float32; other types stay. The state dict is the
  first entry of WRAPPERS, or the object itself; what is no tensor in it is left out. Raises
  FileNotFoundError, or ValueError naming the file when it is damaged, holds no tensors, or asks
  for anything but tensors. Nothing in the file is ever executed.
  """
  path = epath.Path(path)
  with files.refusing(path, "no readable torch checkpoint"), path.open("rb") as file:
    if archive.at_offset(file, 0, min(4, file.seek(0, 2))) == b"PK\3\4":
      return read_zip(file)
    return read_legacy(file)


def read_zip(file):
  members = archive.members(file)
  pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise ValueError(f"it holds {len(pickles)} members data.pkl instead of one")
  root = pickles[0].removesuffix("data.pkl")
  if f"{root}constants.pkl" in members:
    raise ValueError("it is a TorchScript program; save its state_dict() with torch.save")
  order = members.get(f"{root}byteorder")
  if order and (order.size > 16 or bytes(archive.read(file, order)) != b"little"):
    raise ValueError("its numbers are not stored in little-endian order")
  if members[pickles[0]].size > LARGEST_PICKLE:
    raise ValueError(f"its pickle has {members[pickles[0]].size} bytes, far too many")

  def stored(storage, itemsize):
    member = members.get(f"{root}data/{storage.key}")
    if member is None or member.size != storage.size * itemsize:
      raise ValueError(f"its storage {storage.key[:80]!r} of {storage.size} numbers is "
                       f"{'absent' if member is None else f'a member of {member.size} bytes'}")
    return archive.read(file, member)

  machine = pickled.Machine(bytes(archive.read(file, members[pickles[0]])))
  return arrays(state(machine.run()), stored, file.seek(0, 2))


def read_legacy(file):
  length = file.seek(0, 2)
  machine = pickled.Machine(archive.at_offset(file, 0, min(length, LARGEST_PICKLE)))
  if machine.run() != MAGIC or type(machine.run()) is not int:
    raise ValueError("it does not begin with torch's magic number")
  system = machine.run()
  if type(system) is not dict or system.get("little_endian") is not True:
    raise ValueError("its numbers are not stored in little-endian order")
  found, keys = state(machine.run()), machine.run()
  if type(keys) is not list or not all(type(key) is str for key in keys):
    raise ValueError("its list of storages is damaged")
  places, at = {}, machine.at
  for key in keys:
    if key in places or key not in machine.storages:
      raise ValueError(f"its storage {key[:80]!r} comes twice or belongs to nothing")
    storage = machine.storages[key]
    count = int.from_bytes(archive.at_offset(file, at, 8), "little", signed=True)
    if count != storage.size:
      raise ValueError(f"its storage {key[:80]!r} has {count} numbers instead of {storage.size}")
    places[key] = at + 8
    at += 8 + count * dtype(storage).itemsize
  if at > length:
    raise ValueError(f"it ends at byte {length} of {at}")

  def stored(storage, itemsize):
    if storage.key not in places:
      raise ValueError(f"its storage {storage.key[:80]!r} is absent")
    return archive.at_offset(file, places[storage.key], storage.size * itemsize)

  return arrays(found, stored, length)


def state(value):
  """{name: Tensor} of what a pickle holds."""
  if type(value) is not dict:
    raise ValueError(f"it holds a {type(value).__name__}, not a state dict")
  for candidate in (*(value.get(name) for name in WRAPPERS), value):
    if type(candidate) is dict:
      found = {k: v for k, v in candidate.items() if type(k) is str and type(v) is pickled.Tensor}
      if found:
        return found
  names = ", ".join(str(k)[:40] for k in list(value)[:6])
  raise ValueError(f"it holds no state dict, neither itself nor under {', '.join(WRAPPERS)}; its "
                   f"entries are {names or 'none'}")


def dtype(storage):
  return np.dtype(ml_dtypes.bfloat16 if storage.dtype == "bfloat16" else storage.dtype)


def arrays(tensors, stored, length):
  """{name: array}; `stored(storage, itemsize)` reads one storage of the file of `length` bytes."""
  by_key = {}
  for name, t in tensors.items():
    by_key.setdefault(t.storage.key, []).append(name)
  total = sum(math.prod(t.shape) * dtype(t.storage).itemsize for t in tensors.values())
  if total > 2 * length + SMALL:  # zero strides show few bytes as many numbers
    raise ValueError(f"it has {length} bytes, and its tensors would take {total}")
  out = dict.fromkeys(tensors)
  for names in by_key.values():
    kept = tensors[names[0]].storage
    kind = dtype(kept)
    numbers = np.frombuffer(stored(kept, kind.itemsize), kind)
    for name in names:
      t = tensors[name]
      view = np.lib.stride_tricks.as_strided(
        numbers[t.offset :], t.shape, [n * kind.itemsize for n in t.strides], writeable=False)
      # A part of a storage is copied, so that the rest of it need not be kept.
      out[name] = as_float32(view if view.size == numbers.size else view.copy())
  return out
