"""torch.save's own files, made by files/make.py, and files that nobody should trust."""

import pathlib
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest

from peft_jax.weights import reader, torch_file

FILES = pathlib.Path(__file__).parent / "files"
NAMES = sorted(path.stem for path in FILES.glob("torch_*.npz"))


@pytest.mark.parametrize("form", ["", "_legacy"], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_files_of_torch(name, form):
  want = np.load(FILES / f"{name}.npz")
  got = reader.read(FILES / f"{name}{form}.pth")
  assert sorted(got) == sorted(want.files) and len(got) > 0
  for key in want.files:
    assert got[key].dtype == want[key].dtype and got[key].shape == want[key].shape, key
    np.testing.assert_array_equal(got[key], want[key], err_msg=key)


def test_torch_is_not_imported():
  assert "torch" not in sys.modules


def written(tmp_path, value, storages=None, root="archive/", **more):
  """A file as torch.save writes it, with any pickle in it."""
  data = value if isinstance(value, bytes) else pickle.dumps(value, 2)
  path = tmp_path / "w.pth"
  with zipfile.ZipFile(path, "w") as file:
    file.writestr(f"{root}data.pkl", data)
    for key, a in (storages or {}).items():
      file.writestr(f"{root}data/{key}", a.tobytes())
    for name, text in more.items():
      file.writestr(root + name.replace("_", "."), text)
  return path


def text(s):
  return b"X" + struct.pack("<I", len(s)) + s.encode()


def number(n):
  return b"\x8a\x10" + n.to_bytes(16, "little", signed=True)


def tensor(key="0", size=4, offset=0, shape=(4,), strides=(1,), kind="FloatStorage"):
  """The instructions that leave a tensor on the stack."""
  return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\n" + kind.encode()
          + b"\n" + text(key) + text("cpu") + number(size) + b"tQ" + number(offset) + b"("
          + b"".join(map(number, shape)) + b"t(" + b"".join(map(number, strides)) + b"t\x89}tR")


def table(*entries):
  """The pickle of {name: tensor}."""
  return b"\x80\x02}(" + b"".join(text(k) + v for k, v in entries) + b"u."


FOUR = np.arange(4, dtype=np.float32)


def refused(path, *sentences):
  with pytest.raises(ValueError) as error:
    torch_file.read(path)
  message = str(error.value)
  for sentence in (path.name, *sentences):
    assert sentence in message
  assert "\n" not in message and len(message) < 700


def test_a_file_written_by_hand_is_read(tmp_path):
  got = torch_file.read(written(tmp_path, table(("a", tensor())), {"0": FOUR}))
  np.testing.assert_array_equal(got["a"], FOUR)


@pytest.mark.parametrize("entry, sentence", [
  (tensor(offset=1), "leaves its storage of 4 numbers"),
  (tensor(shape=(2, 2), strides=(2, 2)), "leaves its storage"),
  (tensor(shape=(5,)), "leaves its storage"),
  (tensor(offset=-1), "no whole numbers from 0"),
  (tensor(shape=(-4,)), "no whole numbers from 0"),
  (tensor(strides=(-1,)), "no whole numbers from 0"),
  (tensor(shape=(2**100,), strides=(0,)), "would take"),
  (tensor(shape=(2**62, 2**62), strides=(0, 0)), "would take"),
  (tensor(shape=(4, 4), strides=(1,)), "do not go together"),
  (tensor(shape=(1,) * 33, strides=(1,) * 33), "no whole numbers"),
  (tensor(size=5, shape=(5,)), "storage '0' of 5 numbers is a member of 16 bytes"),
  (tensor(size=2**61), "is a member of 16 bytes"),
  (tensor(size=-4), "without a plain name and size"),
  (tensor(key="../../0"), "storage '../../0' of 4 numbers is absent"),
  (tensor(kind="ComplexFloatStorage"), "it asks for 'torch.ComplexFloatStorage'"),
  (tensor() + b"0" + tensor(size=3, shape=(3,)), "comes with two types or sizes"),
])
def test_tensors_outside_their_storage_are_refused(tmp_path, entry, sentence):
  refused(written(tmp_path, table(("a", entry)), {"0": FOUR}), sentence)


def test_many_views_of_few_numbers_are_refused(tmp_path):
  big = np.zeros(1 << 18, np.float32)
  entry = tensor(size=1 << 18, shape=(1 << 8, 1 << 18), strides=(0, 1))
  refused(written(tmp_path, table(*((f"n{i}", entry) for i in range(9))), {"0": big}),
          "its tensors would take")


class System:
  def __init__(self, function, *arguments):
    self.made = function, arguments

  def __reduce__(self):
    return self.made


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_calls_are_refused_by_name_and_nothing_runs(tmp_path, protocol):
  import os
  import subprocess

  marker = tmp_path / "ran"
  inner = pickle.dumps(System(os.system, f"touch {marker}"), protocol)
  for value, name in (
      (System(os.system, f"touch {marker}"), "posix.system"),
      ({"model": {"a": 1}, "args": System(subprocess.check_call, ["touch", str(marker)])},
       ".check_call"),
      (System(eval, f"open({str(marker)!r}, 'w')"), "eval"),
      (System(pickle.loads, inner), "pickle.loads"),
      (System(getattr, "a", "upper"), "getattr")):
    refused(written(tmp_path, pickle.dumps(value, protocol)), "it asks for", name,
            "nothing of it was run")
  assert not marker.exists()


def test_known_names_cannot_be_bent(tmp_path):
  """Allowed names called with other things, or used as values."""
  for data in (b"\x80\x02cargparse\nNamespace\n.", b"\x80\x02ctorch\nFloatStorage\n).",
               b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", b"\x80\x02K\x01K\x02R.",
               b"\x80\x02ctorch\nFloatStorage\n)R.",
               b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
               b"\x80\x02K\x01Q.", b"\x80\x02)Q.", b"\x80\x02}}b.", b"\x80\x02]}b.",
               b"\x80\x02cargparse\nNamespace\n)\x81}b."):
    refused(written(tmp_path, data))


@pytest.mark.parametrize("data, sentence", [
  (b"", "cut off"),
  (b"\x80\x02", "cut off"),
  (b"\x80\x09.", "unknown protocol"),
  (b"\x80\x02.", "fails"),
  (b"\x80\x02(t", "cut off"),
  (b"\x80\x02t.", "fails"),
  (b"\x80\x02X\xff\xff\xff\xff.", "cut off, or too long"),
  (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "cut off, or too long"),
  (b"\x80\x04\x8e" + b"\x00" * 6 + b"\x00\x01.", "cut off, or too long"),
  (b"\x80\x04\x96" + b"\xff" * 8, "not supported"),
  (b"\x80\x02h\x07.", "fails"),
  (b"\x80\x02}]K\x01s.", "fails"),  # a list as a key
  (b"\x80\x02N.", "NoneType"),
  (b"\x80\x02P123\n.", "not supported"),
  (b"\x80\x02cos\nsystem", "within a name"),
  (b"\x80\x02X\x02\x00\x00\x00\xff\xfe.", "decode"),
])
def test_damaged_pickles(tmp_path, data, sentence):
  refused(written(tmp_path, data), sentence)


def test_short_programs_for_huge_values_end(tmp_path):
  """Doubling by reference: 2^n leaves by 4 n bytes; hashing, comparing or printing never ends."""
  doubled = b"\x80\x02]" + b"".join(b"q\x00]h\x00ah\x00a" for _ in range(2000)) + b"."
  refused(written(tmp_path, doubled), "list")
  tuples = b"\x80\x02)" + b"".join(b"q\x00h\x00\x86" for _ in range(2000))
  refused(written(tmp_path, b"\x80\x02}" + tuples[2:] + b"Ns."), "fails")
  deep = b"\x80\x02}" + text("model") + b"]" * 100_000 + b"a" * 99_999 + b"s."
  refused(written(tmp_path, deep), "no state dict")
  itself = b"\x80\x02}q\x00" + text("model") + b"h\x00s."
  refused(written(tmp_path, itself), "no state dict", "its entries are model")
  refused(written(tmp_path, b"\x80\x02" + b"}" * 300_000 + b"."), "more than 300000 instructions")
  refused(written(tmp_path, b"\x80\x02" + text("a" * 5_000_000) + b"."), "far too many")


def test_what_else_is_no_state_dict(tmp_path):
  good = table(("a", tensor()))
  refused(written(tmp_path, good), "storage '0' of 4 numbers is absent")
  refused(written(tmp_path, good, {"0": FOUR}, byteorder="big"), "little-endian")
  refused(written(tmp_path, good, {"0": FOUR}, constants_pkl="x"), "TorchScript")
  refused(written(tmp_path, {"epoch": 3}), "no state dict", "its entries are epoch")
  refused(written(tmp_path, [1]), "holds a list")
  with zipfile.ZipFile(tmp_path / "w.pth", "a") as file:
    file.writestr("other/data.pkl", good)
  refused(tmp_path / "w.pth", "2 members data.pkl")
  legacy = (FILES / "torch_state_legacy.pth").read_bytes()
  for n in range(0, len(legacy), 11):
    (tmp_path / "w.pth").write_bytes(legacy[:n])
    refused(tmp_path / "w.pth")
