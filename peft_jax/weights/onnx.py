"""Tensors and nodes of an ONNX file, read straight from the protobuf wire format.

A message is a sequence of (key, value); key = field * 8 + kind with kind 0 a varint, 1 and 5 fixed
8 and 4 bytes, 2 a length and that many bytes. The fields needed (onnx.proto): ModelProto 7 graph;
GraphProto 1 node, 5 initializer; NodeProto 1 input, 2 output, 4 op_type; TensorProto 1 dims,
2 data_type, 4 float_data, 8 name, 9 raw_data, 14 data_location.

The file is mapped to find its way around; the numbers are read tensor by tensor, so that the map
takes no memory for them. A bound on the number of fields bounds what is kept beside the tensors.
"""

import dataclasses
import math
import mmap

import ml_dtypes
import numpy as np

from peft_jax import files
from peft_jax.weights.npz import as_float32

TYPES = {1: "<f4", 10: "<f2", 11: "<f8", 16: ml_dtypes.bfloat16}
FLOAT32 = 1
MOST_FIELDS = 200_000  # with one more for each 64 bytes of names; an exported ViT has 20,000


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
  op: str
  inputs: tuple
  outputs: tuple


class Wire:
  """An open file, its bytes, and how many fields may still be read."""

  def __init__(self, file, data):
    self.file, self.data, self.left = file, data, MOST_FIELDS

  def spend(self, n):
    self.left -= n
    if self.left < 0:
      raise ValueError(f"it has more than {MOST_FIELDS} fields")


def read(path):
  """({name: float32 array}, [Node, ...]) of the file at `path`.

  float16, bfloat16 and float64 are turned into float32; tensors of other types are left out.
  Raises ValueError naming the file when it is truncated or no ONNX file.
  """
  with files.refusing(path, "truncated or no ONNX file"), open(path, "rb") as file:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
      return read_model(Wire(file, data))


def read_model(wire):
  tensors, nodes = {}, []
  for number, graph in fields(wire, 0, len(wire.data)):
    if number != 7:
      continue
    for number, part in fields(wire, *span(graph)):
      if number == 1:
        nodes.append(read_node(wire, *span(part)))
      elif number == 5:
        name, array = read_tensor(wire, *span(part))
        if name in tensors:
          raise ValueError(f"tensor {name[:80]!r} comes twice")
        if array is not None:
          tensors[name] = array
  if not nodes:
    raise ValueError("it holds no graph")
  return tensors, nodes


def read_node(wire, start, end):
  found = {1: [], 2: [], 4: []}
  for number, value in fields(wire, start, end):
    if number in found:
      found[number].append(text(wire, value))
  return Node("".join(found[4]), tuple(found[1]), tuple(found[2]))


def read_tensor(wire, start, end):
  """(name, float32 array), or (name, None) for a type that is no floating point number."""
  dims, kind, name, raw, numbers = [], None, "", None, None
  for number, value in fields(wire, start, end):
    if number == 1 and isinstance(value, int):
      dims.append(value)
    elif number == 1:  # packed
      at, stop = value
      while at < stop:
        wire.spend(1)
        n, at = varint(wire.data, at, stop)
        dims.append(n)
    elif number == 2:
      kind = value
    elif number == 4:
      numbers = span(value)
    elif number == 8:
      name = text(wire, value)
    elif number == 9:
      raw = span(value)
    elif number == 14 and value:
      raise ValueError(f"tensor {name[:80]!r} lies in another file")
  if not isinstance(kind, int) or kind not in TYPES:
    return name, None
  if raw is None and kind == FLOAT32:
    raw = numbers
  dtype = np.dtype(TYPES[kind])
  if len(dims) > 32 or (
      raw is None or max(dims, default=0) > raw[1]
      or raw[1] - raw[0] != dtype.itemsize * math.prod(dims)):
    raise ValueError(f"tensor {name[:80]!r} of shape {dims[:8]} does not hold that many bytes")
  wire.file.seek(raw[0])
  data = files.take(wire.file, raw[1] - raw[0])
  return name, as_float32(np.frombuffer(data, dtype).reshape(dims))


def fields(wire, start, end):
  """(field, value) of the message in [start, end): an int, or the (start, end) of its bytes."""
  data = wire.data
  while start < end:
    wire.spend(1)
    key, start = varint(data, start, end)
    number, kind = key >> 3, key & 7
    if kind == 0:
      value, start = varint(data, start, end)
    elif kind in (1, 2, 5):
      size = {1: 8, 5: 4}.get(kind)
      if size is None:
        size, start = varint(data, start, end)
      if size > end - start:
        raise ValueError(f"field {number} at byte {start} wants {size} bytes of {end - start}")
      value, start = (start, start + size), start + size
    else:
      raise ValueError(f"unknown wire type {kind} at byte {start}")
    yield number, value


def varint(data, at, end):
  """(value, next position): seven bits a byte, low bits first, the top bit says "more"."""
  value = shift = 0
  while at < end and shift < 70:
    byte = data[at]
    value |= (byte & 127) << shift
    at, shift = at + 1, shift + 7
    if byte < 128:
      return value, at
  raise ValueError(f"number without an end at byte {at}")


def span(value):
  if isinstance(value, int):
    raise ValueError("a number where a message should be")
  return value


def text(wire, value):
  start, end = span(value)
  wire.spend((end - start) // 64)
  return wire.data[start:end].decode()
