"""The task table against the counts the papers and task_adaptation give."""

import pytest

from peft_jax import data
from peft_jax.data import tasks

REFERENCE = """
cifar100 100 10000
caltech101 102 6084
dtd 47 1880
oxford_flowers102 102 6149
oxford_iiit_pet 37 3669
svhn 10 26032
sun397 397 21750
patch_camelyon 2 32768
eurosat 10 5400
resisc45 45 6300
diabetic_retinopathy 5 42670
clevr_count 8 15000
clevr_dist 6 15000
dmlab 6 22735
kitti_dist 4 711
dsprites_loc 16 73728
dsprites_ori 16 73728
smallnorb_azi 18 12150
smallnorb_ele 9 12150
"""


# train, val, test, official training set: fgvc's facts. VPT's table, and the data sets' own pages.
FGVC = """
cub_200_2011 200 5394 600 5794 5994
nabirds 555 21536 2393 24633 23929
oxford_flowers 102 1020 1020 6149 2040
stanford_dogs 120 10800 1200 8580 12000
stanford_cars 196 7329 815 8041 8144
"""


def test_rows_are_those_of_vtab_in_the_papers_order():
  rows = [(name, int(k), int(n)) for name, k, n in map(str.split, REFERENCE.split("\n")[1:-1])]
  assert [(task.name, task.num_classes, task.sizes["test"]) for task in data.VTAB] == rows
  assert [task.group for task in data.VTAB] == (
    ["natural"] * 7 + ["specialized"] * 4 + ["structured"] * 8
  )
  assert sum(task.sizes["test"] for task in data.VTAB) == 387904


def test_rows_are_those_of_fgvc():
  rows = [(name, *map(int, rest)) for name, *rest in map(str.split, FGVC.split("\n")[1:-1])]
  splits = ("train", "val", "test", "trainval")
  assert [(t.name, t.num_classes, *(t.sizes[s] for s in splits)) for t in data.FGVC] == rows
  assert {(t.group, t.train_split, t.eval_split) for t in data.FGVC} == {
    ("fgvc", "trainval", "test")
  }


def test_rows_of_cifar100_and_imagenet():
  cifar100, imagenet = data.GENERAL
  assert (cifar100.name, cifar100.num_classes) == ("cifar100_full", 100)
  assert cifar100.sizes == {"train": 50000, "test": 10000}
  assert (imagenet.name, imagenet.num_classes) == ("imagenet", 1000)
  assert imagenet.sizes == {"train": 1281167, "val": 50000}
  assert (imagenet.train_split, imagenet.eval_split) == ("train", "val")
  assert {imagenet.group, cifar100.group} == {"general"}


def test_every_name_and_folder_belongs_to_one_task():
  names = [name for task in data.TASKS.values() for name in {task.name, *task.folders}]
  assert len(names) == len(set(names))
  for task in data.TASKS.values():
    for folder in task.folders:
      assert tasks.find(folder) is task


def test_class_counts_do_not_come_from_folder_names():
  assert tasks.find("clevr_dist_8").num_classes == 6
  assert tasks.find("kitti_2").num_classes == 4
  assert tasks.find("smallnorb_ele_18").num_classes == 9


@pytest.mark.parametrize("task", data.TASKS.values(), ids=data.TASKS)
def test_there_is_one_distinct_name_a_class(task):
  if task.class_names is None:
    assert task.name in ("dmlab", "imagenet") or task.group == "fgvc"
  else:
    assert len(set(task.class_names)) == len(task.class_names) == task.num_classes


def test_the_orientation_classes_name_every_orientation_once():
  assert data.TASKS["dsprites_ori"].class_names[:3] == (
    "orientation 0..2 of 40",
    "orientation 3..4 of 40",
    "orientation 5..7 of 40",
  )


def test_an_unknown_task_lists_the_known_ones():
  with pytest.raises(ValueError, match="no task 'cifar1000'.*'folder'.*cifar100.*mini_fashion"):
    data.open("cifar1000", size=8)


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "224"])
def test_a_size_is_a_positive_integer(size):
  with pytest.raises(ValueError, match="positive number of pixels"):
    data.open("mini_digits", size=size)


def test_an_unknown_resize_lists_the_known_ones():
  with pytest.raises(ValueError, match="no resize 'lanczos'.*bicubic_pil.*short_side"):
    data.open("mini_digits", size=8, resize="lanczos")
