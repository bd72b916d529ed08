"""Thousands of damaged files per format: one short ValueError or a sound load, and nothing runs.

Each file differs from a good one in one to three places, mostly in headers, opcodes, offsets and
directories. A change inside a zip member is packed anew with its right check sum, so that it
reaches the reader behind. Watched by an audit hook (calls, processes, writing, sockets) and by
tracemalloc (peak of what one file makes Python and NumPy allocate).
"""

import functools
import io
import pathlib
import pickle
import random
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from peft_jax import safetensors
from peft_jax.weights import pickled, reader

FILES = pathlib.Path(__file__).parent / "files"
MB = 1 << 20


class Ran(BaseException):
  """Not an Exception: no reader may catch it."""


WATCHED = [False]
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename",
             "os.mkdir", "subprocess.Popen", "exec", "pickle.find_class", "socket.", "ctypes.",
             "shutil.", "marshal.")


def watch(event, arguments):
  if WATCHED[0] and (event.startswith(FORBIDDEN) or (
      event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+"))):
    raise Ran(event, arguments)


@functools.cache
def hook():
  sys.addaudithook(watch)


def test_the_watch_sees_a_free_unpickler_run_code(tmp_path):
  hook()
  marker = tmp_path / "ran"
  hostile = b"cposix\nsystem\n(V" + f"touch {marker}".encode() + b"\ntR."
  WATCHED[0] = True
  try:
    with pytest.raises(Ran):
      pickle.loads(hostile)
    with pytest.raises(Ran):
      open(marker, "w")
  finally:
    WATCHED[0] = False
  assert not marker.exists()


ARRAYS = {
  "patch_embed.proj.weight": (4, 3, 2, 2), "cls_token": (1, 1, 4), "blocks.0.norm1.weight": (4,),
  "blocks.0.attn.qkv.weight": (12, 4), "blocks.0.attn.qkv.bias": (12,), "scalar": (),
}


def arrays():
  draw = np.random.RandomState(0)
  return {k: np.float32(draw.standard_normal(s)) for k, s in ARRAYS.items()}


def npz_file():
  file = io.BytesIO()
  np.savez(file, **arrays())
  return file.getvalue()


def safetensors_file():
  text = safetensors.header(arrays(), {"by": "test"})
  return text + b"".join(arrays()[name].tobytes() for name in safetensors._stored(arrays()))




def varint(n):
  return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def message(field, data):
  return varint(field << 3 | 2) + varint(len(data)) + data


def onnx_bytes():
  graph = b"".join(
    message(5, b"".join(varint(8) + varint(n) for n in a.shape) + b"\x10\x01"
            + message(8, name.encode()) + message(9, a.tobytes())) for name, a in arrays().items())
  node = message(1, b"cls_token") + message(2, b"y") + message(4, b"Identity")
  return b"\x08\x08" + message(7, message(1, node) + graph)


GOOD = {
  "npz": npz_file,
  "safetensors": safetensors_file,
  "torch": lambda: (FILES / "torch_state.pth").read_bytes(),
  "torch_legacy": lambda: (FILES / "torch_training_legacy.pth").read_bytes(),
  "onnx": onnx_bytes,
}
READ = {kind: reader.READERS[kind.partition("_")[0]] for kind in GOOD}
# Places of numbers in these files that say how much there is or where.
NUMBERS = [0, 1, -1, 2, 7, 127, 128, 255, 256, 65535, 2**31 - 1, -2**31, 2**32 - 1, 2**63 - 1,
           -2**63, 1000, 4096, 2**20, 2**40]


def structure(data, contents):
  """Positions outside the arrays' own numbers."""
  inside = np.zeros(len(data), bool)
  for content in contents:
    at = data.find(content) if len(content) >= 8 else -1
    if at >= 0:
      inside[at : at + len(content)] = True
  return np.flatnonzero(~inside).tolist()


def changed(data, places, rng):
  """`data` with one to three changes at `places`, or, one in six, anywhere."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 3))):
    at = rng.choice(places) if rng.random() < 5 / 6 else rng.randrange(len(data))
    at = min(at, len(data) - 1)
    how = rng.randrange(9)
    if how == 0:
      data[at] = rng.randrange(256)
    elif how == 1:
      data[at] ^= 1 << rng.randrange(8)
    elif how == 2:
      layout = rng.choice(("<I", "<Q", ">I", "<H", "B"))
      size = struct.calcsize(layout)
      data[at : at + size] = (rng.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, "little")
    elif how == 3:
      del data[at : at + rng.choice((1, 2, 4, 8, 40))]
    elif how == 4:
      data[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
    elif how == 5:
      data[at:at] = b"".join(rng.choices(list(pickled.STEPS), k=rng.choice((1, 3))))
    elif how == 6:
      other, size = rng.choice(places), rng.choice((1, 4, 16, 46))
      data[at : at + size] = data[other : other + size]
    elif how == 7 and chr(data[at]).isdigit():
      data[at : at + 1] = str(rng.choice(NUMBERS)).encode()
    elif how == 8 and rng.random() < 0.3:
      del data[at:]
    if not data:
      data = bytearray(b"\0")
  return bytes(data)


def variants(kind, count, seed):
  """`count` damaged files, and the good one at first."""
  good, rng = GOOD[kind](), random.Random(seed)
  contents = [a.tobytes() for a in arrays().values()]
  yield good
  members = {}
  if kind in ("npz", "torch"):
    with zipfile.ZipFile(io.BytesIO(good)) as z:
      members = {i.filename: z.read(i) for i in z.infolist()}
    contents += [v for k, v in members.items() if "/data/" in k]
  places = structure(good, contents)
  inner = [k for k in members if k.endswith((".npy", "data.pkl", "byteorder"))]
  for _ in range(count):
    if inner and rng.random() < 0.6:
      name = rng.choice(inner) if kind == "npz" or rng.random() < 0.1 else inner[0]
      bad = changed(members[name], structure(members[name], contents), rng)
      file = io.BytesIO()
      method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
      with zipfile.ZipFile(file, "w", method) as z:
        for k, v in members.items():
          z.writestr(k, bad if k == name else v)
      yield file.getvalue()
    else:
      yield changed(good, places, rng)


def run(kind, count, path, seed):
  """(loaded, refused) numbers of files."""
  hook()
  wanted, loaded, refused = None, 0, 0
  tracemalloc.start()
  try:
    for i, data in enumerate(variants(kind, count, seed)):
      path.write_bytes(data)
      tracemalloc.reset_peak()
      before = tracemalloc.get_traced_memory()[0]
      WATCHED[0] = True
      try:
        got = READ[kind](path) if i % 4 else reader.read(path)
      except ValueError as error:
        text = str(error)
        assert path.name in text and "\n" not in text and len(text) < 800, text
        got = None
      finally:
        WATCHED[0] = False
      peak = tracemalloc.get_traced_memory()[1] - before
      assert peak < 64 * MB + 2 * len(data), (i, peak)
      if wanted is None:
        wanted = {k: a.copy() for k, a in got.items()}
      elif got is None:
        refused += 1
      else:
        loaded += 1
        sound(got, wanted, len(data))
  finally:
    tracemalloc.stop()
  return loaded, refused


def sound(got, wanted, size):
  """Arrays by name, of types of numbers, no larger than the file allows; each is one of the good
  file's where its name, shape and bytes were left alone."""
  assert sum(a.nbytes for a in got.values()) <= 2 * size + 16 * MB
  for name, a in got.items():
    assert isinstance(name, str) and isinstance(a, np.ndarray) and a.dtype.kind in "biuf"
    assert a.dtype.kind != "f" or a.dtype == np.float32
    a.copy()  # every number can be reached
  same = [name for name in got if name in wanted and got[name].shape == wanted[name].shape
          and np.array_equal(got[name], wanted[name], equal_nan=True)]
  # Three changes at most, though a removed byte shifts what follows it.
  assert len(same) > 0 or len(got) <= 4 or size < 3000, (len(same), len(got))


@pytest.mark.parametrize("kind", GOOD)
def test_damaged_files(kind, tmp_path):
  loaded, refused = run(kind, 100, tmp_path / "w.file", 0)
  assert loaded >= 2 and refused >= 40, (loaded, refused)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GOOD)
def test_thousands_of_damaged_files(kind, tmp_path):
  loaded, refused = run(kind, 2000, tmp_path / "w.file", 1)
  assert loaded >= 40 and refused >= 800, (loaded, refused)


@pytest.mark.parametrize("kind", GOOD)
def test_changes_of_numbers_alone_change_one_array_or_are_seen(kind, tmp_path):
  """Zip files have check sums; in the others a changed number is that number."""
  good, path, rng = GOOD[kind](), tmp_path / "w.file", random.Random(3)
  path.write_bytes(good)
  wanted = READ[kind](path)
  numbers = {k: a.tobytes() for k, a in wanted.items() if a.nbytes >= 12}
  for _ in range(40):
    name = rng.choice([k for k in numbers if numbers[k] in good])
    at = good.index(numbers[name])
    bad = bytearray(good)
    bad[at + 4 * rng.randrange(len(numbers[name]) // 4)] ^= 1
    path.write_bytes(bad)
    if kind in ("npz", "torch"):
      with pytest.raises(ValueError, match="check sum"):
        READ[kind](path)
      continue
    got = READ[kind](path)
    assert got.keys() == wanted.keys()
    assert [k for k in got if not np.array_equal(got[k], wanted[k])] == [name]
    assert np.sum(got[name] != wanted[name]) == 1


# --- the worst that each bound lets through --------------------------------------------------


def peak_of(path, read, *sentences):
  tracemalloc.start()
  try:
    with pytest.raises(ValueError) as error:
      read(path)
    assert all(s in str(error.value) for s in sentences), error.value
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def test_json_headers_full_of_objects(tmp_path):
  path = tmp_path / "w.safetensors"
  n = safetensors.LARGEST_HEADER
  for unit in (b'{"":0},', b"[],", b"{},", b'"\xf0\x9f\x98\x80",'):
    text = b'{"a":[' + unit * ((n - 20) // len(unit)) + b"0]}"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert peak_of(path, reader.read) < 64 * MB
  text = b"{" + b",".join(b'"%x":0' % i for i in range(90_000)) + b"}"
  path.write_bytes(len(text).to_bytes(8, "little") + text)
  assert peak_of(path, reader.read) < 64 * MB


@pytest.mark.slow
@pytest.mark.parametrize("unit", [
  b"}", b"]", b"(", b")", b"K\x01", b"]q\x00", b"}q\x00h\x00", b"\x8c\x04abcd", b"G" + b"\1" * 8,
  b"]\x94", b"}NNs", b"}\x94K\x01K\x02s", b"\x8a\x081234567\x01", b"]a",
  b"cargparse\nNamespace\n)\x81", b"X\x08\0\0\0abc\xf0\x9f\x98\x80d"])
def test_pickles_full_of_objects(tmp_path, unit):
  data = b"\x80\x04" + (b"]" if unit == b"]a" else b"") + unit * 250_000
  data = data[: (4 << 20) - 100] + b"."
  with zipfile.ZipFile(tmp_path / "w.pth", "w") as file:
    file.writestr("a/data.pkl", data)
  assert peak_of(tmp_path / "w.pth", reader.read) < 64 * MB


@pytest.mark.slow
@pytest.mark.parametrize("unit", [message(1, b""), message(5, b""), message(1, b"\n\0" * 9),
                                  message(1, message(1, b"abc")), message(5, b"\x08\x01" * 50),
                                  message(5, message(1, b"\x01" * 100))])
def test_graphs_full_of_nodes(tmp_path, unit):
  path = tmp_path / "w.onnx"
  path.write_bytes(b"\x08\x08" + message(7, unit * 300_000))
  assert peak_of(path, reader.read) < 64 * MB


@pytest.mark.slow
def test_directories_full_of_entries(tmp_path):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as z:
    for i in range(75_000):
      z.writestr(f"{i:x}", b"")
  (tmp_path / "w.npz").write_bytes(file.getvalue())
  assert peak_of(tmp_path / "w.npz", reader.read, "is no array") < 64 * MB
