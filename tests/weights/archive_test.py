"""Zip files and the arrays in them: zipfile's own are read, bent ones refused in one sentence."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from peft_jax.weights import archive, npz, reader

NOISE = np.random.RandomState(0).bytes(5000)
CONTENT = {"a": b"", "b/c.npy": NOISE, "é": b"\0" * 3_000_000, "d": NOISE[:1]}


def zipped(content, method=zipfile.ZIP_STORED, **options):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", method, **options) as z:
    for name, data in content.items():
      z.writestr(name, data)
  return file


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_those_of_zipfile(method):
  content = CONTENT | ({"é": CONTENT["é"][:9000]} if method == zipfile.ZIP_DEFLATED else {})
  file = zipped(content, method)
  found = archive.members(file)
  assert found.keys() == content.keys()
  assert {k: bytes(archive.read(file, m)) for k, m in found.items()} == content


def test_zip64_is_read():
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as z:
    with z.open("big", "w", force_zip64=True) as f:
      f.write(NOISE)
  data = bytearray(file.getvalue())
  # The directory's entry and the end record in their wide form, as torch's writer makes them.
  at = data.index(b"PK\1\2")
  head, (offset,) = bytes(data[at : at + 46]), struct.unpack_from("<L", data, at + 42)
  wide = struct.pack("<HHQQQ", 1, 24, len(NOISE), len(NOISE), offset)
  entry = (head[:20] + b"\xff" * 8 + struct.pack("<HHH", 3, len(wide), 0) + head[34:42]
           + b"\xff" * 4 + b"big" + wide)
  end64 = b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 1, 1, len(entry), at)
  locator = b"PK\6\7" + struct.pack("<LQL", 0, at + len(entry), 1)
  last = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
  file = io.BytesIO(bytes(data[:at]) + entry + end64 + locator + last)
  assert zipfile.ZipFile(file).read("big") == NOISE  # the standard library takes it for sound
  assert archive.read(file, archive.members(file)["big"]) == NOISE


def bent(tmp_path, data, *sentences, name="w.npz"):
  path = tmp_path / name
  path.write_bytes(data)
  tracemalloc.start()
  try:
    with pytest.raises(ValueError) as error:
      reader.read(path)
    assert tracemalloc.get_traced_memory()[1] < (64 << 20) + 2 * len(data)
  finally:
    tracemalloc.stop()
  for sentence in (name, *sentences):
    assert sentence in str(error.value)
  assert "\n" not in str(error.value) and len(str(error.value)) < 700


def array_bytes(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


W = np.random.RandomState(1).standard_normal((30, 20)).astype(np.float32)


def patched(data, mark, at, layout, *values):
  """`data` with numbers put `at` bytes behind the first `mark`."""
  data = bytearray(data)
  struct.pack_into(layout, data, data.index(mark) + at, *values)
  return bytes(data)


def test_sizes_that_are_not_true(tmp_path):
  packed = zipped({"w.npy": array_bytes(W)}, zipfile.ZIP_DEFLATED).getvalue()
  for size in (1, len(array_bytes(W)) - 1, len(array_bytes(W)) + 1):
    bent(tmp_path, patched(packed, b"PK\1\2", 24, "<L", size), "does not unpack to")
  bent(tmp_path, patched(packed, b"PK\1\2", 24, "<L", 0xFFFFFFF0), "no weights do that")
  bent(tmp_path, patched(packed, b"PK\1\2", 20, "<L", 0xFFFFFFF0), "overlaps what follows")
  bent(tmp_path, patched(packed, b"PK\1\2", 16, "<L", 1), "check sum")
  bent(tmp_path, patched(packed, b"PK\1\2", 42, "<L", 7), "overlaps")
  bent(tmp_path, patched(packed, b"PK\1\2", 10, "<H", 12), "packed in a way")
  bent(tmp_path, patched(packed, b"PK\1\2", 8, "<H", 1), "encrypted")
  bent(tmp_path, patched(packed, b"PK\5\6", 12, "<L", 0xFFFFFF), "directory")
  bent(tmp_path, patched(packed, b"PK\5\6", 16, "<L", 0), "begins no entry")
  bent(tmp_path, patched(packed, b"PK\3\4", 28, "<H", 0xFFFF), "header of its member")


def test_bombs(tmp_path):
  zeros = array_bytes(np.zeros(50_000_000, np.float32))
  bomb = zipped({"w.npy": zeros}, zipfile.ZIP_DEFLATED).getvalue()
  assert len(bomb) < 300_000
  bent(tmp_path, bomb, "would unpack to 200000128", "no weights do that")
  # The same with a size that fits the file: found out before anything is kept.
  bent(tmp_path, patched(bomb, b"PK\1\2", 24, "<L", 2_000_000), "does not unpack to 2000000")


def test_overlapping_members(tmp_path):
  """Many entries of the directory for one and the same data, as in Fifield's bombs."""
  data = zipped({"w.npy": array_bytes(W)}).getvalue()
  at = data.index(b"PK\1\2")
  entry, end = data[at : at + 46 + 5], data.index(b"PK\5\6")
  entries = b"".join(entry[:46] + b"%d.npy" % i for i in range(9))
  last = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 9, 9, len(entries), at, 0)
  assert end == at + 51
  bent(tmp_path, data[:at] + entries + last, "overlaps what follows it")
  with pytest.warns(UserWarning, match="Duplicate name"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
      z.writestr("w.npy", array_bytes(W))
      z.writestr("w.npy", array_bytes(W))
  bent(tmp_path, file.getvalue(), "comes twice")


def test_long_directories(tmp_path):
  many = zipped({f"{i:060}.npy": b"" for i in range(45_000)}).getvalue()
  bent(tmp_path, many, "its directory has 4950000 bytes, far too many")


def header(text, data=b"", version=1):
  text = text.encode()
  length = len(text).to_bytes(2 if version == 1 else 4, "little")
  return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def described(descr="'<f4'", fortran="False", shape="(2,)"):
  return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}"


@pytest.mark.parametrize("member, sentence", [
  (b"", "does not begin"),
  (b"\x93NUMPY\1\0", "does not begin"),
  (header(described(), b"." * 7), "does not go with its 7 bytes"),
  (header(described(shape="(3,)"), b"." * 8), "does not go with its 8 bytes"),
  (header(described(shape="(-2,)"), b"." * 8), "no tuple of whole numbers from 0"),
  (header(described(shape="(-1, -2)"), b"." * 8), "no tuple of whole numbers from 0"),
  (header(described(shape="(True, 2)"), b"." * 8), "no tuple of whole numbers from 0"),
  (header(described(shape="[2]"), b"." * 8), "no tuple of whole numbers from 0"),
  (header(described(shape="(1,) * 9"), b"." * 8), "cannot be read"),
  (header(described(shape=f"({'1,' * 40})"), b"." * 4), "does not go with"),
  (header(described(shape=f"(0, {2**62}, {2**62})")), "holds"),
  (header(described("'|O'"), b"." * 16), "holds '|O', not numbers"),
  (header(described("[('a', '<f4')]"), b"." * 8), "not numbers"),
  (header(described("'<f3'"), b"." * 8), "no type of number"),
  (header(described("'<c8'"), b"." * 8), "not numbers"),
  (header("__import__('os').system('false')", b"." * 8), "cannot be read"),
  (header("{'descr': '<f4'}", b"." * 8), "cannot be read"),
  (header("(" * 1000, b"." * 8), "cannot be read"),
  (header(described() + " " * 5000, b"." * 8), "its header would have"),
  (header(described(), b"." * 8)[:9] + b"\xff" + header(described(), b"." * 8)[10:], "its header"),
])
def test_bent_arrays(tmp_path, member, sentence):
  if sentence == "holds":  # NumPy counts no elements here, and cannot hold the shape either
    sentence = "w"
  bent(tmp_path, zipped({"w.npy": member}).getvalue(), "'w.npy': it" if sentence != "w" else "w",
       sentence)


def test_sound_arrays_of_every_form(tmp_path):
  arrays = {"fortran": np.asfortranarray(W), "scalar": np.float32(3), "empty": W[:0],
            "big": W.astype(">f4"), "double": W.astype(np.float64), "half": W.astype(np.float16),
            "int": np.arange(3), "bool": np.array([True]), "u1": np.uint8([7])}
  np.savez(tmp_path / "w.npz", **arrays)
  for version in ((2, 0), (3, 0)):
    file = io.BytesIO()
    np.lib.format.write_array(file, W, version=version)
    with zipfile.ZipFile(tmp_path / "w.npz", "a") as z:
      z.writestr(f"version{version[0]}.npy", file.getvalue())
  got = npz.read(tmp_path / "w.npz")
  for name, a in arrays.items():
    want = a.astype(np.float32) if np.issubdtype(a.dtype, np.floating) else a
    assert got[name].dtype == want.dtype and got[name].shape == a.shape
    np.testing.assert_array_equal(got[name], want)
  np.testing.assert_array_equal(got["version2"], W)
  np.testing.assert_array_equal(got["version3"], W)
  np.savez_compressed(tmp_path / "packed.npz", **arrays)
  for name, a in npz.read(tmp_path / "packed.npz").items():
    np.testing.assert_array_equal(a, got[name])
