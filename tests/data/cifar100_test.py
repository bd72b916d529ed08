"""CIFAR-100's published files and trees; the row has small counts."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from peft_jax import data
from peft_jax.data import cifar100

SIZES = {"train": 12, "test": 5}
ROW = dataclasses.replace(data.TASKS["cifar100_full"], sizes=SIZES)


def open_task(root, size=32, **changes):
  return cifar100.open_task(dataclasses.replace(ROW, **changes), root, size, "bicubic_pil")


def records(count, seed):
  """(the bytes of a file, the fine labels, [count, 32, 32, 3]), written record by record."""
  random = np.random.default_rng(seed)
  images = random.integers(0, 256, (count, 32, 32, 3), np.uint8)
  labels, written = random.integers(0, 100, count), bytearray()
  for image, label in zip(images, labels, strict=True):
    written += bytes([label // 5, label])
    for channel in range(3):
      written += image[:, :, channel].tobytes()
  return bytes(written), labels, images


@pytest.fixture
def root(tmp_path):
  folder = tmp_path / "Meine Bilder" / "cifar-100-binary"
  folder.mkdir(parents=True)
  for seed, (name, count) in enumerate(SIZES.items()):
    (folder / f"{name}.bin").write_bytes(records(count, seed)[0])
  return folder.parent


def test_the_binary_version_is_read(root):
  dataset = open_task(root)
  assert (dataset.name, dataset.group, dataset.num_classes) == ("cifar100_full", "general", 100)
  assert (tuple(dataset.splits), dataset.train_split, dataset.eval_split) == (
    ("train", "test"), "train", "test"
  )
  for seed, (name, count) in enumerate(SIZES.items()):
    _, labels, images = records(count, seed)
    split = dataset.split(name)
    assert split.labels.dtype == np.int32 and split.labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(split.images(), images)  # 32 pixels: nothing is resized
    assert split.keys == tuple(f"{name}/{i}" for i in range(count))
  assert dataset.class_names[0] == "apple" and dataset.class_names[99] == "worm"
  assert open_task(root / "cifar-100-binary").fingerprint() == dataset.fingerprint()


def test_the_fingerprint_follows_pixels(root):
  first = open_task(root).fingerprint()
  file = root / "cifar-100-binary" / "train.bin"
  content = bytearray(file.read_bytes())
  content[100] ^= 1
  file.write_bytes(content)
  assert open_task(root).fingerprint() != first


def expect(root, error, *parts, **changes):
  with pytest.raises(error) as caught:
    open_task(root, **changes)
  for part in parts:
    assert part in str(caught.value)


def test_files_that_do_not_fit_are_named(root):
  file = root / "cifar-100-binary" / "test.bin"
  content = file.read_bytes()
  expect(root, ValueError, "train.bin holds 12 images of train, but cifar100_full has 50000",
         sizes=data.TASKS["cifar100_full"].sizes)
  file.write_bytes(content[:-1])
  expect(root, ValueError, "test.bin has 15369 bytes, 3073 more than 4 records of 3074")
  file.write_bytes(content[:3075] + b"\x64" + content[3076:])  # the second record's fine label
  expect(root, ValueError, "test.bin: record 1 has the fine label 100", "0..99")
  file.unlink()
  expect(root, FileNotFoundError, "no", "test.bin", "cifar-100-binary.tar.gz")


@pytest.mark.parametrize("below", [".", "cifar-100-python"])
def test_the_pickled_version_is_not_read(tmp_path, below):
  folder = tmp_path / below
  folder.mkdir(exist_ok=True)
  for name in ("train", "test", "meta"):
    (folder / name).write_bytes(b"\x80\x02}q\x01.")
  expect(tmp_path, ValueError, "pickled and not read", "fetch the binary version")


@pytest.mark.parametrize("names", ["numbers", "words"])
@pytest.mark.parametrize("held_out", ["val", "test"])
def test_trees_are_read(tmp_path, names, held_out):
  words = data.TASKS["cifar100_full"].class_names
  for i in range(100):
    for part in ("train", held_out):
      folder = tmp_path / "cifar100_full" / part / (str(i) if names == "numbers" else words[i])
      folder.mkdir(parents=True)
      Image.new("RGB", (32, 32), (2 * i,) * 3).save(folder / "bild 1 ü.png")
  dataset = open_task(tmp_path, sizes={"train": 100, "test": 100})
  assert dataset.class_names == words
  for name in ("train", "test"):
    split = dataset.split(name)
    assert split.labels.tolist() == list(range(100))
    assert split.images()[:, 5, 5, 2].tolist() == list(range(0, 200, 2))
  assert dataset.split("test").keys[0].startswith(f"{held_out}/")
  expect(tmp_path, ValueError, "train holds 100 images of train, but cifar100_full has 101",
         sizes={"train": 101, "test": 100})
  expect(tmp_path, ValueError, "has 100 classes, but cifar100_full has 99", num_classes=99)


def test_a_tree_with_three_parts_is_refused(tmp_path):
  for part in ("train", "val", "test"):
    (tmp_path / part / "apple").mkdir(parents=True)
  expect(tmp_path, ValueError, "train and val and test with class folders", "take one folder away")


@pytest.mark.parametrize("case", ["unset", "gone", "empty"])
def test_a_root_without_it_says_what_is_expected(tmp_path, case):
  root = {"unset": None, "gone": tmp_path / "gone"}.get(case, tmp_path)
  found = {"unset": "data.root is not set", "gone": "there is no folder", "empty": "has no folder"}
  error = ValueError if root is None else FileNotFoundError
  expect(root, error, "cifar100_full", found[case], "train.bin and test.bin", "quickstart.py")
