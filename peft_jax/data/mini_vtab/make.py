"""Writes the files stored next to this one, from public packages. Not needed to use peft_jax.

    apt-get install dataset-fashion-mnist; pip install scikit-learn scikit-image
    python -m peft_jax.data.mini_vtab.make --out peft_jax/data/mini_vtab

fashion.npz          Fashion-MNIST, the 1000 + 2000 images tensorflow-datasets would store first
digits.npz           scikit-learn's load_digits, all 1797 in the order of tensorflow-datasets
texture_<class>.png  eight photographs of scikit-image in grey, short side 400 pixels
dsprites.npz         which of dSprites' 737280 latent indices VTAB uses (no images)
NOTICE, at the root of the repository, holds the licences.
"""

import argparse
import gzip
import pathlib

import numpy as np
from PIL import Image

from peft_jax import files
from peft_jax.data.mini_vtab import texture
from peft_jax.data.split import tfds_order

SOURCES = {  # class -> file of scikit-image, region (left, top, right, bottom)
  "brick": ("brick.png", None),
  "grass": ("grass.png", None),
  "gravel": ("gravel.png", None),
  "retina": ("retina.jpg", (300, 300, 1111, 1111)),
  "coffee": ("coffee.png", None),
  "hubble": ("hubble_deep_field.jpg", None),
  "ihc": ("ihc.png", None),
  "coins": ("coins.png", None),
}


def idx(path):
  """uint8 array of an idx file (the format of MNIST): two zeros, type 8, rank, sizes, bytes."""
  raw = gzip.decompress(path.read_bytes())
  rank = raw[3]
  shape = np.frombuffer(raw, ">i4", rank, 4)
  return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def fashion(folder):
  order = tfds_order(range(60000), "train")
  train = np.asarray(order[:800] + order[54000:54200])
  test = np.asarray(tfds_order(range(10000), "test")[:2000])
  arrays = {}
  for name, prefix, keys in (("train", "train", train), ("test", "t10k", test)):
    arrays[f"{name}_keys"] = keys.astype(np.int32)
    arrays[f"{name}_images"] = idx(folder / f"{prefix}-images-idx3-ubyte.gz")[keys]
    arrays[f"{name}_labels"] = idx(folder / f"{prefix}-labels-idx1-ubyte.gz")[keys]
  return arrays


def digits():
  from sklearn.datasets import load_digits

  data = load_digits()
  keys = np.asarray(tfds_order(range(len(data.target)), "train"), np.int32)
  images = (data.images[keys].astype(np.int32) * 255 + 8) // 16  # 0..16 -> 0..255
  arrays = {}
  for name, part in (("train", slice(None, 1000)), ("test", slice(1000, None))):
    arrays[f"{name}_keys"] = keys[part]
    arrays[f"{name}_images"] = images[part].astype(np.uint8)
    arrays[f"{name}_labels"] = data.target[keys][part].astype(np.uint8)
  return arrays


def dsprites():
  order = tfds_order(range(737280), "train")
  return {
    "train_keys": np.asarray(order[:800] + order[589824:590024], np.int32),
    "test_keys": np.asarray(order[663552:665552], np.int32),
  }


def photograph(file, region):
  import skimage.data

  image = Image.open(pathlib.Path(skimage.data.__file__).parent / file)
  image = image.convert("RGB").convert("L").crop(region or (0, 0, *image.size))
  scale = texture.SHORT_SIDE / min(image.size)
  return image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--fashion", default="/usr/share/datasets/fashion-mnist", type=pathlib.Path)
  parser.add_argument("--out", required=True, type=pathlib.Path)
  flags = parser.parse_args()
  stored = {"fashion": fashion(flags.fashion), "digits": digits(), "dsprites": dsprites()}
  for name, arrays in stored.items():
    with files.replacing(flags.out / f"{name}.npz") as out:
      np.savez_compressed(out, **arrays)
  assert tuple(SOURCES) == texture.CLASSES
  for name, (file, region) in SOURCES.items():
    with files.replacing(flags.out / f"texture_{name}.png") as out:
      photograph(file, region).save(out, format="PNG", optimize=True)


if __name__ == "__main__":
  main()
