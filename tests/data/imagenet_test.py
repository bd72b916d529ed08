"""ImageNet's tree, with 3 classes; what is counted is how often folders are listed."""

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from peft_jax import data
from peft_jax.data import class_tree, imagenet

WNIDS = ("n01440764", "n01443537", "n15075141")
SIZES = {"train": 6, "val": 3}
ROW = dataclasses.replace(data.TASKS["imagenet"], num_classes=3, sizes=SIZES)


def open_task(root, size=8, **changes):
  return imagenet.open_task(dataclasses.replace(ROW, **changes), root, size, "bicubic_pil")


@pytest.fixture
def root(tmp_path):
  folder = tmp_path / "große Bilder" / "ILSVRC2012"
  for level, wnid in zip((10, 100, 200), WNIDS, strict=True):
    for name, count in (("train", 2), ("val", 1)):
      (folder / name / wnid).mkdir(parents=True)
      for i in range(count):
        file = folder / name / wnid / f"{wnid}_{i}.JPEG"
        Image.new("L" if i else "RGB", (12, 9), level if i else (level,) * 3).save(file)
  (folder / "train" / WNIDS[0] / ".hidden.JPEG").write_bytes(b"x")
  (folder / "train" / WNIDS[0] / "notes.txt").write_bytes(b"x")
  return folder.parent


def test_the_tree_is_read(root):
  dataset = open_task(root)
  assert (dataset.name, dataset.group, dataset.num_classes) == ("imagenet", "general", 3)
  assert (dataset.train_split, dataset.eval_split) == ("train", "val")
  assert tuple(dataset.splits) == ("train", "val") and dataset.class_names == WNIDS
  train, val = dataset.split("train"), dataset.split("val")
  assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and train.labels.dtype == np.int32
  assert val.labels.tolist() == [0, 1, 2]
  assert train.keys[1] == "train/n01440764/n01440764_1.JPEG"
  levels = np.asarray([10, 100, 200])
  for split in (train, val):
    pixels = split.images()
    assert pixels.shape == (len(split), 8, 8, 3)
    assert np.abs(pixels[:, 4, 4, 0].astype(int) - levels[split.labels]).max() <= 1
  assert open_task(root / "ILSVRC2012").fingerprint() == dataset.fingerprint()


def test_a_split_is_listed_once_and_only_when_it_is_asked_for(root, monkeypatch):
  listed = []
  scandir = os.scandir
  monkeypatch.setattr(
    class_tree.os, "scandir", lambda path: (listed.append(os.fspath(path)), scandir(path))[1]
  )
  dataset = open_task(root)
  assert {path.split("/")[-1] for path in listed} == {"train", "val"}
  listed.clear()
  assert dataset.split("val") is dataset.split("val")
  assert [path.split("/")[-2:] for path in listed] == [["val", wnid] for wnid in WNIDS]
  with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
    dataset.split("test")


def test_no_image_is_opened_before_it_is_asked_for(root):
  bad = root / "ILSVRC2012" / "val" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG"
  bad.write_bytes(b"no picture")
  split = open_task(root).split("val")
  assert split.images([0, 2]).shape == (2, 8, 8, 3)
  with pytest.raises(ValueError, match="Cannot read the image .*n01443537_0.JPEG"):
    split.images([1])


def test_the_fingerprint_follows_names(root):
  first = open_task(root).fingerprint()
  folder = root / "ILSVRC2012" / "train" / WNIDS[1]
  (folder / f"{WNIDS[1]}_0.JPEG").rename(folder / f"{WNIDS[1]}_7.JPEG")
  assert open_task(root).fingerprint() != first


def test_val_alone_is_enough_to_evaluate(root):
  whole = open_task(root).split("val")
  (root / "ILSVRC2012" / "train").rename(root / "train elsewhere")
  dataset = open_task(root)
  assert tuple(dataset.splits) == ("val",)
  assert dataset.split("val").labels.tolist() == whole.labels.tolist()
  assert dataset.split("val").keys == whole.keys


def expect(root, error, *parts, **changes):
  with pytest.raises(error) as caught:
    open_task(root, **changes).split("train")
  for part in parts:
    assert part in str(caught.value)


def test_what_does_not_fit_is_named(root):
  expect(root, ValueError, "train holds 6 images of train, but imagenet has 1281167",
         sizes=data.TASKS["imagenet"].sizes)
  expect(root, ValueError, "train has 3 classes, but imagenet has 1000", num_classes=1000)
  folder = root / "ILSVRC2012"
  (folder / "val" / WNIDS[2]).rename(folder / "val" / "n99999999")
  expect(root, ValueError, "train and", "val do not hold the same classes: 'n15075141'")
  (folder / "val" / "n99999999").rename(folder / "val" / WNIDS[2])
  (folder / "train" / WNIDS[2]).rename(root / "moved")
  (folder / "train" / WNIDS[2]).mkdir()
  expect(root, ValueError, f"{WNIDS[2]} holds no image")


def test_unsorted_validation_images_are_explained(root):
  folder = root / "ILSVRC2012" / "val"
  for wnid in WNIDS:
    (folder / wnid / f"{wnid}_0.JPEG").rename(folder / f"{wnid}.JPEG")
    (folder / wnid).rmdir()
  expect(root, ValueError, "val holds no class folders", "valprep.sh")


@pytest.mark.parametrize("case", ["unset", "gone", "empty"])
def test_a_root_without_it_says_what_is_expected(tmp_path, case):
  root = {"unset": None, "gone": tmp_path / "gone"}.get(case, tmp_path)
  found = {"unset": "data.root is not set", "gone": "there is no folder", "empty": "has no folder"}
  error = ValueError if root is None else FileNotFoundError
  expect(root, error, "imagenet", found[case], "one folder a wnid", "quickstart.py")
