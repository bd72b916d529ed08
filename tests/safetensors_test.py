"""The reader gives back what the writer wrote, and refuses everything else in one sentence."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from peft_jax import safetensors


def arrays():
  return {
    "b/u8": np.arange(5, dtype=np.uint8),
    "a/f16": np.array([[1.5, -2.0]], np.float16),
    "a/f32": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
    "a/bf16": np.array([1.0, 3.140625], ml_dtypes.bfloat16),
    "c/i64": np.array([-(2**60)], np.int64),
    "c/i32": np.array(7, np.int32),
    "c/none": np.zeros((0, 3), np.float32),
  }


def file_of(tmp_path, entries, data=b""):
  text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
  path = tmp_path / "x.safetensors"
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)
  return path


def entry(begin, end, shape=(1,), dtype="F32"):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_arrays_and_metadata_come_back_as_they_were(tmp_path):
  path = tmp_path / "new" / "a.safetensors"
  safetensors.write(path, arrays(), {"k": 'é "quoted"\n'})
  found, metadata = safetensors.read(path)
  assert metadata == {"k": 'é "quoted"\n'}
  assert found.keys() == arrays().keys()
  for name, array in arrays().items():
    assert found[name].dtype == array.dtype and found[name].shape == array.shape
    np.testing.assert_array_equal(found[name], array)
  assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_bytes_follow_the_format_and_do_not_depend_on_order(tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  safetensors.write(one, arrays(), {"a": "1", "b": "2"})
  safetensors.write(two, dict(reversed(arrays().items())), {"b": "2", "a": "1"})
  assert one.read_bytes() == two.read_bytes()
  content = one.read_bytes()
  length = int.from_bytes(content[:8], "little")
  head = json.loads(content[8 : 8 + length])
  assert length % 8 == 0 and content[8:9] == b"{"
  begin, end = head["a/bf16"]["data_offsets"]
  assert head["a/bf16"]["dtype"] == "BF16"
  assert content[8 + length + begin : 8 + length + end] == b"\x80\x3f\x49\x40"


def test_size_is_that_of_the_file_without_any_array(tmp_path):
  shapes = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in arrays().items()}
  path = tmp_path / "a"
  safetensors.write(path, arrays(), {"k": "v"})
  assert safetensors.size(shapes, {"k": "v"}) == path.stat().st_size


def test_jax_arrays_are_written(tmp_path):
  safetensors.write(tmp_path / "a", {"x": jnp.ones((2,), jnp.bfloat16)})
  assert safetensors.read(tmp_path / "a")[0]["x"].dtype == jnp.bfloat16


def test_a_dtype_outside_the_table_is_refused_and_leaves_no_file(tmp_path):
  with pytest.raises(ValueError, match="x has dtype complex64; a safetensors file here holds flo"):
    safetensors.write(tmp_path / "a", {"x": np.zeros(1, np.complex64)})
  assert not list(tmp_path.iterdir())


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "a"
  safetensors.write(path, {"x": np.zeros(1, np.float32)})
  before, stored = path.read_bytes(), safetensors._stored

  def stop(arrays):
    monkeypatch.setattr(safetensors, "_stored", lambda arrays: 1 / 0)
    return stored(arrays)

  monkeypatch.setattr(safetensors, "_stored", stop)
  with pytest.raises(ZeroDivisionError):
    safetensors.write(path, {"x": np.ones(1, np.float32)})
  assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_every_truncation_is_refused(tmp_path):
  path, cut = tmp_path / "a", tmp_path / "cut"
  safetensors.write(path, arrays(), {"k": "v"})
  content = path.read_bytes()
  for length in range(0, len(content), 7):
    cut.write_bytes(content[:length])
    with pytest.raises(ValueError, match="cut is no complete safetensors file: .* again"):
      safetensors.read(cut)


@pytest.mark.parametrize(
  "entries, data, sentence",
  [
    ({"x": entry(0, 8, (2,)), "y": entry(4, 8)}, b"." * 8, "'y' at bytes 4 to 8 overlaps"),
    ({"x": entry(0, 4), "y": entry(8, 12)}, b"." * 12, "leaves a hole"),
    ({"x": entry(4, 8)}, b"." * 8, "leaves a hole"),
    ({"x": entry(0, 4)}, b"." * 8, "4 bytes at its end belong to no array"),
    ({"x": entry(0, 400, (100,))}, b"." * 8, "'x' ends at byte 400 of 8"),
    ({"x": entry(0, 4, (2,))}, b"." * 4, r"'x' of shape \(2,\) needs 8 bytes, not 4"),
    ({"x": entry(0, 4, (2**62, 2**62))}, b"." * 4, "needs .* bytes, not 4"),
    ({"x": entry(0, -4, (-1,))}, b"", "not whole numbers"),
    ({"x": entry(0, 4, (True,))}, b"." * 4, "not whole numbers"),
    ({"x": entry(0, 4.0)}, b"." * 4, "not whole numbers"),
    ({"x": entry(0, 4, (1,) * 65)}, b"." * 4, "65 axes"),
    ({"x": entry(0, 4, dtype="C64")}, b"." * 4, "dtype C64, which is none of float32"),
    ({"x": entry(0, 4, dtype=[1])}, b"." * 4, "dtype"),
    ({"x": {"dtype": "F32"}}, b"", "not dtype, shape and data_offsets"),
    ({"x": 3}, b"", "not dtype, shape and data_offsets"),
    ({"__metadata__": {"a": 1}}, b"", "not a table of strings"),
    ({"__metadata__": [1]}, b"", "not a table of strings"),
    ([1], b"", "header is not a table"),
    (b'{"x": 1, "x": 2}', b"", "a name comes twice"),
    (b"{" * 100, b"", "not json"),
    (b"[" * 100_000, b"", "not json"),
    (b"\xff\xfe", b"", "not json"),
    (b'{"x": ' + b"9" * 5000 + b"}", b"", "not json"),
  ],
)
def test_hostile_headers_are_refused(tmp_path, entries, data, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    safetensors.read(file_of(tmp_path, entries, data))
  assert type(caught.value) is ValueError and "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
  path = tmp_path / "x"
  path.write_bytes(b"PK\x03\x04 a zip file, as torch writes it ......")
  with pytest.raises(ValueError, match="announce a header of [0-9]+ bytes, far too many"):
    safetensors.read(path)
  with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
    safetensors.read(tmp_path / "nowhere")
  with pytest.raises(FileNotFoundError, match="is a folder"):
    safetensors.read(tmp_path)
