"""Peak memory of loading weights, in sizes of the file.

    python benchmarks/load_memory.py            about a minute; needs 2 GB of temporary disk

For each kind of file: a ViT-B/16 of random numbers (86.6 million, 346 MB) is written, and loaded by
weights.load in a process of its own. The figure is the growth of that process's resident set, from
just before the call, after all imports and one load of a tiny model, to its peak (VmHWM, set back
just before), divided by the file's size. Linux only; ru_maxrss would not do, as a process begins
with its parent's. torch and ONNX files are written here, in the layout of these programs.
"""

import json
import pathlib
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

LOAD = """
import re, sys, jax
def memory(what):
  return 1024 * int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
from peft_jax import models, weights
tiny = models.create("vit_test", num_classes=2)
params, _ = weights.load("random", tiny, key=jax.random.key(0))
weights.save(sys.argv[2], params)
weights.load(sys.argv[2], tiny, key=jax.random.key(0))
model = models.create("vit_base_patch16_224", num_classes=2)
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
params, base = weights.load(sys.argv[1], model, key=jax.random.key(0))
peak = memory("VmHWM") - before
assert sum(x.size for x in jax.tree.leaves(params)) > 85e6
print(peak)
"""


def state():
  """timm's names and shapes of a ViT-B/16 without head."""
  d, shapes = 768, {}
  for i in range(12):
    at = f"blocks.{i}."
    for name, shape in (("attn.qkv", (3 * d, d)), ("attn.proj", (d, d)), ("mlp.fc1", (4 * d, d)),
                        ("mlp.fc2", (d, 4 * d)), ("norm1", (d,)), ("norm2", (d,))):
      shapes |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
  shapes |= {"patch_embed.proj.weight": (d, 3, 16, 16), "patch_embed.proj.bias": (d,),
             "norm.weight": (d,), "norm.bias": (d,), "cls_token": (1, 1, d),
             "pos_embed": (1, 197, d)}
  random = np.random.default_rng(0)
  return {k: random.standard_normal(s, np.float32) for k, s in shapes.items()}


class Stored:
  """An array as torch's pickles describe it."""

  def __init__(self, key, array):
    self.key, self.array = key, array


def pickled(arrays):
  """The pickle of {name: tensor}, storages by number, in protocol 2."""
  def text(s):
    return b"X" + struct.pack("<I", len(s)) + s.encode()

  def whole(n):
    return b"J" + struct.pack("<i", n)

  out = b"\x80\x02}("
  for key, (name, a) in enumerate(arrays.items()):
    strides = [s // a.itemsize for s in a.strides]
    out += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
    out += b"ctorch\nFloatStorage\n" + text(str(key)) + text("cpu") + whole(a.size) + b"tQK\x00"
    out += b"(" + b"".join(map(whole, a.shape)) + b"t(" + b"".join(map(whole, strides)) + b"t"
    out += b"\x89}tR"
  return out + b"u."


def write_torch(path, arrays):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
    file.writestr("archive/data.pkl", pickled(arrays))
    for key, a in enumerate(arrays.values()):
      file.writestr(f"archive/data/{key}", a.tobytes())


def write_legacy(path, arrays):
  with open(path, "wb") as file:
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
      pickle.dump(value, file, 2)
    file.write(pickled(arrays))
    pickle.dump([str(i) for i in range(len(arrays))], file, 2)
    for a in arrays.values():
      file.write(struct.pack("<q", a.size) + a.tobytes())


def write_safetensors(path, arrays):
  from peft_jax import safetensors

  safetensors.write(path, arrays)


def write_onnx(path, arrays):
  def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

  def message(field, *parts):
    size = sum(len(part) for part in parts)
    return [varint(field << 3 | 2) + varint(size), *parts]

  graph = message(1, *message(4, b"Identity"))
  for name, a in arrays.items():
    dims = b"".join(b"\x08" + varint(n) for n in a.shape)
    graph += message(5, dims + b"\x10\x01", *message(8, name.encode()),
                     *message(9, a.tobytes()))
  with open(path, "wb") as file:
    file.writelines([b"\x08\x08", *message(7, *graph)])


WRITERS = {
  "w.npz": lambda path, arrays: np.savez(path, **arrays),
  "w.safetensors": write_safetensors,
  "w.pth": write_torch,
  "legacy.pth": write_legacy,
  "w.onnx": write_onnx,
}


if __name__ == "__main__":
  arrays, found = state(), {}
  for name, write in WRITERS.items():
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / name
      write(path, arrays)
      size = path.stat().st_size
      done = subprocess.run([sys.executable, "-c", LOAD, path, pathlib.Path(folder) / "tiny.npz"],
                            capture_output=True, text=True, check=True)
      found[name] = {"bytes": size, "peak": int(done.stdout), "ratio": int(done.stdout) / size}
      print(f"{name:14} {size / 1e6:6.0f} MB   peak {found[name]['ratio']:.2f} x its size")
  print(json.dumps(found))
