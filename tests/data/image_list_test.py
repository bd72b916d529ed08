"""VTAB-1k folders of image lists, whose lines name the same four tiny pictures again and again."""

import shutil

import numpy as np
import pytest
from PIL import Image

from peft_jax import data

TASK = data.TASKS["kitti_dist"]  # the smallest test split: 711
LISTS = ("train800", "val200", "train800val200", "test")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A root with vtab-1k/kitti: picture k of class k is grey level 50 k; names hold a space."""
  root = tmp_path_factory.mktemp("data sets")
  folder = root / "vtab-1k" / "kitti"
  (folder / "images" / "all of it").mkdir(parents=True)
  for k in range(4):
    Image.new("L", (12, 8), 50 * k).save(folder / "images" / "all of it" / f"{k} ü.png")
  labels = {"train800": [0, 1, 2, 3] * 200, "val200": [3, 2, 1, 0] * 50}
  labels["train800val200"] = labels["train800"] + labels["val200"]
  labels["test"] = [k % 4 for k in range(711)]
  for name, numbers in labels.items():
    lines = [f"images/all of it/{k} ü.png {k}\n" for k in numbers]
    (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
  return root


@pytest.fixture
def root(made, tmp_path):
  """A copy of it to spoil."""
  shutil.copytree(made, tmp_path / "data")
  return tmp_path / "data"


def open_task(root, task="kitti_dist"):
  return data.open(task, root=root, size=16)


@pytest.mark.parametrize("below", ["", "vtab-1k", "vtab-1k/kitti"])
def test_the_lists_are_read_from_the_root_or_below(made, below):
  dataset = open_task(made / below)
  assert (dataset.name, dataset.group, dataset.num_classes) == ("kitti_dist", "structured", 4)
  assert tuple(dataset.splits) == LISTS
  for name, split in dataset.splits.items():
    assert len(split) == TASK.sizes[name] and split.labels.dtype == np.int32
  assert dataset.split("val200").labels[:5].tolist() == [3, 2, 1, 0, 3]
  assert dataset.split("test").keys[2] == "images/all of it/2 ü.png"
  images = dataset.split("test").images([0, 3, 1, 2])
  assert images.shape == (4, 16, 16, 3)
  assert images[:, 5, 5, 0].tolist() == [0, 150, 50, 100]
  assert str(made / "vtab-1k" / "kitti") == dataset.source


@pytest.mark.parametrize("alias", ["kitti_dist", *TASK.folders])
def test_every_folder_name_of_the_table_is_found(root, alias):
  folder = root / "vtab-1k" / "kitti"
  folder.rename(root / "vtab-1k" / "elsewhere")
  (root / "vtab-1k" / "elsewhere").rename(root / "vtab-1k" / alias)
  assert len(open_task(root).split("test")) == 711
  assert len(open_task(root, task=alias).split("test")) == 711


def test_the_joined_list_is_made_of_the_other_two_where_it_is_missing(root):
  joined = open_task(root).split("train800val200")
  (root / "vtab-1k" / "kitti" / "train800val200.txt").unlink()
  again = open_task(root).split("train800val200")
  assert again.keys == joined.keys and again.labels.tolist() == joined.labels.tolist()
  np.testing.assert_array_equal(again.images([3, 990]), joined.images([3, 990]))


def test_a_list_may_be_missing_until_it_is_asked_for(root):
  (root / "vtab-1k" / "kitti" / "val200.txt").unlink()
  (root / "vtab-1k" / "kitti" / "test.txt").unlink()
  dataset = open_task(root)
  with pytest.raises(ValueError, match="kitti.* has no split 'test'; it has train800, train"):
    dataset.split("test")


def test_windows_line_ends_blank_lines_and_a_byte_order_mark_are_read(root):
  file = root / "vtab-1k" / "kitti" / "val200.txt"
  before = open_task(root).split("val200")
  file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
  after = open_task(root).split("val200")
  assert after.keys == before.keys and after.labels.tolist() == before.labels.tolist()


def spoil(root, name, number, line):
  file = root / "vtab-1k" / "kitti" / f"{name}.txt"
  lines = file.read_text(encoding="utf-8").splitlines()
  lines[number - 1] = line
  file.write_text("\n".join(lines), encoding="utf-8")


def test_a_label_out_of_range_is_named(root):
  spoil(root, "train800", 17, "images/all of it/0 ü.png 4")
  with pytest.raises(ValueError, match=r"train800.txt, line 17: label 4, .*kitti_dist.* 0\.\.3"):
    open_task(root)


@pytest.mark.parametrize("line", ["images/0.png", "images/0.png -1", "images/0.png one", "3"])
def test_a_line_that_is_no_path_and_label_is_named(root, line):
  spoil(root, "test", 3, line)
  with pytest.raises(ValueError, match=f"test.txt, line 3: expected .* found '{line}'"):
    open_task(root)


def test_a_wrong_count_is_named(root):
  spoil(root, "test", 3, "")
  with pytest.raises(ValueError, match="test.txt lists 710 images, but test of kitti_dist has 711"):
    open_task(root)


def test_a_missing_image_is_named(root):
  spoil(root, "val200", 2, "images/val200/000001.jpg 2")
  with pytest.raises(FileNotFoundError, match="val200.txt lists .*val200/000001.jpg, which does"):
    open_task(root)


def test_an_unreadable_image_is_named_when_decoded(root):
  (root / "vtab-1k" / "kitti" / "images" / "all of it" / "1 ü.png").write_bytes(b"no picture")
  split = open_task(root).split("test")
  assert split.images([0]).shape == (1, 16, 16, 3)
  for indices in ([1], range(40)):  # in this thread, in several
    with pytest.raises(ValueError, match="Cannot read the image .*1 ü.png"):
      split.images(indices)


@pytest.mark.parametrize("case", ["unset", "gone", "empty", "no lists"])
def test_a_root_without_the_task_says_what_to_fetch_and_what_runs_without(tmp_path, case):
  root = {"unset": None, "gone": tmp_path / "gone"}.get(case, tmp_path)
  if case == "no lists":
    (tmp_path / "vtab-1k" / "kitti").mkdir(parents=True)
  with pytest.raises((ValueError, FileNotFoundError)) as caught:
    open_task(root)
  message = str(caught.value)
  expected = {
    "unset": "data.root is not set",
    "gone": "there is no folder",
    "empty": "has no folder kitti_dist or kitti or",
    "no lists": "holds none of the lists train800.txt",
  }
  assert "kitti_dist" in message and expected[case] in message
  assert "fetch the VTAB-1k image lists" in message
  assert "`python train.py --config=configs/quickstart.py`" in message


def test_fingerprint_does_not_depend_on_the_place_but_on_labels_and_sizes(made, root):
  first = open_task(made).fingerprint()
  assert open_task(root).fingerprint() == first
  Image.new("L", (40, 40), 9).save(root / "vtab-1k/kitti/images/all of it/0 ü.png")
  second = open_task(root).fingerprint()
  spoil(root, "test", 1, "images/all of it/0 ü.png 1")
  assert len({first, second, open_task(root).fingerprint()}) == 3
