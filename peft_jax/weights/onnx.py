"""Tensors and nodes of an ONNX file, read straight from the protobuf wire format.

A message is a sequence of (key, value); key = field * 8 + kind with kind 0 a varint, 1 and 5 fixed
8 and 4 bytes, 2 a length and that many bytes. The fields needed (onnx.proto): ModelProto 7 graph;
GraphProto 1 node, 5 initializer; NodeProto 1 input, 2 output, 4 op_type; TensorProto 1 dims,
2 data_type, 8 name, 9 raw_data, 14 data_location.
"""

import dataclasses
import math
import mmap

import numpy as np

FLOAT32 = 1


@dataclasses.dataclass(frozen=True)
class Node:
  op: str
  inputs: tuple
  outputs: tuple


def read(path):
  """({name: float32 array}, [Node, ...]) of the file at `path`; other types are left out.

  Raises ValueError naming the file when it is truncated or no ONNX file.
  """
  with open(path, "rb") as f:
    try:
      with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return read_model(data)
    except ValueError as error:
      raise ValueError(f"{path} is truncated or no ONNX file: {error}.") from None


def read_model(data):
  tensors, nodes = {}, []
  for number, graph in fields(data, 0, len(data)):
    if number != 7:
      continue
    for number, part in fields(data, *span(graph)):
      if number == 1:
        nodes.append(read_node(data, *span(part)))
      elif number == 5:
        name, array = read_tensor(data, *span(part))
        if array is not None:
          tensors[name] = array
  if not nodes:
    raise ValueError("it holds no graph")
  return tensors, nodes


def read_node(data, start, end):
  found = {1: [], 2: [], 4: []}
  for number, value in fields(data, start, end):
    if number in found:
      found[number].append(text(data, value))
  return Node("".join(found[4]), tuple(found[1]), tuple(found[2]))


def read_tensor(data, start, end):
  """(name, float32 array), or (name, None) for another type."""
  dims, kind, name, raw = [], None, "", None
  for number, value in fields(data, start, end):
    if number == 1 and isinstance(value, int):
      dims.append(value)
    elif number == 1:  # packed
      at, stop = value
      while at < stop:
        n, at = varint(data, at, stop)
        dims.append(n)
    elif number == 2:
      kind = value
    elif number == 8:
      name = text(data, value)
    elif number == 9:
      raw = span(value)
    elif number == 14 and value:
      raise ValueError(f"tensor {name!r} lies in another file")
  if kind != FLOAT32:
    return name, None
  if raw is None or max(dims, default=0) > raw[1] or raw[1] - raw[0] != 4 * math.prod(dims):
    raise ValueError(f"tensor {name!r} of shape {dims} does not hold that many bytes")
  return name, np.frombuffer(data[slice(*raw)], "<f4").reshape(dims)


def fields(data, start, end):
  """(field, value) of the message in data[start:end]: an int, or the (start, end) of its bytes."""
  while start < end:
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


def text(data, value):
  return data[slice(*span(value))].decode()
