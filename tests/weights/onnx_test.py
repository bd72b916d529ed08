"""The ONNX reader on a file built here, whole, cut at every byte, and with single bytes changed."""

import numpy as np
import pytest

from peft_jax.weights import onnx


def varint(n):
  out = bytearray()
  while n > 127:
    out.append(n & 127 | 128)
    n >>= 7
  return bytes(out + bytes([n]))


def number(field, n):
  return varint(field << 3) + varint(n)


def message(field, data):
  data = data.encode() if isinstance(data, str) else data
  return varint(field << 3 | 2) + varint(len(data)) + data


def tensor(name, array, kind, packed=False):
  dims = (message(1, b"".join(varint(n) for n in array.shape)) if packed
          else b"".join(number(1, n) for n in array.shape))
  return dims + number(2, kind) + message(8, name) + message(9, array.tobytes())


W = np.arange(300, dtype=np.float32).reshape(20, 15)
B = np.float32([1.5, -2.5])
S = np.float32(7)


def model():
  nodes = [message(1, "x") + message(1, "w") + message(2, "y") + message(4, "MatMul"),
           message(1, "y") + message(1, "b") + message(2, "z") + message(4, "Add")]
  graph = b"".join(message(1, n) for n in nodes) + message(2, "graph")
  graph += message(5, tensor("w", W, 1)) + message(5, tensor("b", B, 1, packed=True))
  graph += message(5, tensor("s", S, 1)) + message(5, tensor("n", np.int64([3]), 7))
  fixed = varint(99 << 3 | 5) + bytes(4) + varint(98 << 3 | 1) + bytes(8)
  return number(1, 8) + message(2, "producer") + fixed + message(7, graph)


def write(tmp_path, data):
  path = tmp_path / "model.onnx"
  path.write_bytes(data)
  return path


def test_tensors_and_nodes(tmp_path):
  tensors, nodes = onnx.read(write(tmp_path, model()))
  assert sorted(tensors) == ["b", "s", "w"]
  for name, want in (("w", W), ("b", B), ("s", S)):
    np.testing.assert_array_equal(tensors[name], want)
    assert tensors[name].shape == want.shape
  assert nodes == [onnx.Node("MatMul", ("x", "w"), ("y",)), onnx.Node("Add", ("y", "b"), ("z",))]


def test_every_truncation_is_refused_by_name(tmp_path):
  data = model()
  for n in range(len(data)):
    with pytest.raises(ValueError, match="model.onnx is truncated"):
      onnx.read(write(tmp_path, data[:n]))


def test_changed_bytes_read_or_raise_value_error(tmp_path):
  data, random = model(), np.random.RandomState(0)
  for _ in range(500):
    bad = bytearray(data)
    bad[random.choice([random.randint(len(data)), random.randint(120)])] = random.randint(256)
    try:
      onnx.read(write(tmp_path, bytes(bad)))
    except ValueError as error:
      assert "model.onnx" in str(error)


def test_external_data_is_refused(tmp_path):
  graph = message(5, number(1, 2) + number(2, 1) + message(8, "w") + number(14, 1))
  with pytest.raises(ValueError, match="another file"):
    onnx.read(write(tmp_path, message(7, graph)))
