"""FGVC's layouts, each written as its publishers write it; the rows have small counts."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from peft_jax import data
from peft_jax.data import fgvc

# 3 classes; 2 images of each to train, 1 in val (class 17 has none), 1 to test.
IDS = (5, 17, 300)
SIZES = {"train": 6, "val": 2, "trainval": 8, "test": 3}
LEVEL = {5: 10, 17: 100, 300: 200}
PARTS = {"train": IDS * 2, "val": (5, 300), "test": (300, 17, 5)}


def row(name="cub_200_2011", **changes):
  return dataclasses.replace(data.TASKS[name], **({"num_classes": 3, "sizes": SIZES} | changes))


def open_task(root, name="cub_200_2011", size=8, **changes):
  return fgvc.open_task(row(name, **changes), root, size, "bicubic_pil")


def picture(path, level=0, side=8):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (side, side), (level,) * 3).save(path)


def image(part, i, id):
  return f"{id:03d}.Böser Vogel/{part} {i} ü.png"


def write_json(folder, images="images", lists=""):
  for part, ids in PARTS.items():
    listed = {image(part, i, id): id for i, id in enumerate(ids)}
    for key, id in listed.items():
      picture(folder / images / key, LEVEL[id])
    (folder / lists).mkdir(exist_ok=True)
    (folder / lists / f"{part}.json").write_text(json.dumps(listed))
  return folder


def write_tables(folder, train=IDS * 3, test=PARTS["test"]):
  """The official training set is train and val; ids of images are UUIDs, as NABirds has them."""
  lines = {name: [] for name in fgvc.TABLES}
  for part, ids in (("train", train), ("test", test)):
    for i, id in enumerate(ids):
      name, key = f"{part[:2]}{i:02d}-f0", image(part, i, id)
      picture(folder / "images" / key, LEVEL[id])
      for table, value in zip(fgvc.TABLES, (key, id, int(part == "train")), strict=True):
        lines[table].append(f"{name} {value}\n")
  for table, text in lines.items():
    (folder / table).write_text("".join(text), encoding="utf-8")
  (folder / "classes.txt").write_text("5 Ein Vogel (männlich)\n17 Other\n300 Third\n4 Not a leaf\n")
  return folder


def write_tree(folder, held_out=("val",), train=IDS * 3):
  for part, ids in (("train", train), *((part, IDS) for part in held_out)):
    for i, id in enumerate(ids):
      picture(folder / part / str(id) / f"{part} {i}.jpg", LEVEL[id])
  return folder


OFFICIAL = SIZES | {"train": 8, "val": 1, "trainval": 9}  # ceil(9 / 10) = 1


def check_pixels(dataset):
  """Every image has the grey level of its class."""
  levels = np.asarray(list(LEVEL.values()))
  for split in dataset.splits.values():
    pixels = split.images()
    assert pixels.shape == (len(split), 8, 8, 3) and split.labels.dtype == np.int32
    assert np.abs(pixels[:, 4, 4, 1].astype(int) - levels[split.labels]).max() <= 1


@pytest.mark.parametrize(
  ("images", "lists"), [("images", ""), ("Images", ""), (".", ""), ("Images", "split")]
)
def test_the_json_lists_of_vpt_and_of_san_are_read(tmp_path, images, lists):
  write_json(tmp_path / "CUB", images, lists)
  dataset = open_task(tmp_path)
  assert (dataset.name, dataset.group, dataset.num_classes) == ("cub_200_2011", "fgvc", 3)
  assert tuple(dataset.splits) == ("train", "val", "test", "trainval")
  assert (dataset.train_split, dataset.eval_split) == ("trainval", "test")
  assert {name: len(split) for name, split in dataset.splits.items()} == SIZES
  assert dataset.split("train").labels.tolist() == [0, 1, 2, 0, 1, 2]
  assert dataset.split("test").labels.tolist() == [2, 1, 0]
  assert dataset.split("test").keys[0] == "300.Böser Vogel/test 0 ü.png"
  assert dataset.class_names is None and dataset.source == str(tmp_path / "CUB")
  check_pixels(dataset)


def test_labels_are_places_among_the_ids_of_all_lists(tmp_path):
  write_json(tmp_path / "CUB")
  split = open_task(tmp_path).split("val")
  assert split.labels.tolist() == [0, 2]  # VPT's code, which sorts val's own ids, gives 0, 1


def test_trainval_is_train_then_val(tmp_path):
  dataset = open_task(write_json(tmp_path / "CUB"))
  train, val, both = (dataset.split(name) for name in ("train", "val", "trainval"))
  assert both.keys == train.keys + val.keys
  assert both.labels.tolist() == [*train.labels, *val.labels]
  np.testing.assert_array_equal(both.images(), np.concatenate([train.images(), val.images()]))


@pytest.mark.parametrize(
  "name, folder",
  [(task.name, folder) for task in data.FGVC for folder in (task.name, *task.folders)],
)
def test_every_folder_name_of_the_table_is_found(tmp_path, name, folder):
  write_json(tmp_path / "Meine Daten" / folder)
  root = tmp_path / "Meine Daten"
  assert open_task(root, name).fingerprint() == open_task(root / folder, name).fingerprint()


def test_all_kinds_of_images_are_read(tmp_path):
  write_json(tmp_path)
  grey = Image.new("RGB", (9, 7), (100,) * 3)
  made = [grey.convert(mode) for mode in ("L", "P", "RGBA", "LA", "CMYK")]
  made.append(Image.fromarray(np.full((7, 9), 100 * 257, np.uint16)))
  assert made[-1].mode == "I;16"
  keys = open_task(tmp_path).split("train").keys
  for key, image in zip(keys, made, strict=True):
    image.save(tmp_path / "images" / key, "JPEG" if image.mode == "CMYK" else "PNG")
  pixels = open_task(tmp_path).split("train").images().astype(int)
  assert pixels.shape == (6, 8, 8, 3) and np.abs(pixels - 100).max() <= 2


def test_photographs_are_not_turned_as_the_camera_says(tmp_path):
  """The papers' codes do not either."""
  write_json(tmp_path)
  photo, exif = Image.new("L", (8, 8), 0), Image.Exif()
  photo.paste(255, (0, 0, 8, 4))
  exif[0x0112] = 3  # upside down
  photo.save(tmp_path / "images" / image("test", 0, 300), exif=exif)
  made = open_task(tmp_path).split("test").images([0])[0]
  assert made[0].min() == 255 and made[-1].max() == 0


def expected_val(keys, count):
  """As the rule is worded: the last of the list sorted by md5("fgvc-val" + path)."""
  digest = {hashlib.md5(f"fgvc-val{key}".encode()).hexdigest(): key for key in keys}
  return {digest[d] for d in sorted(digest)[-count:]}


def test_the_official_lists_are_cut_by_md5(tmp_path):
  train = IDS * 7  # 21 images: 3 go to val
  write_tables(tmp_path / "nabirds", train)
  sizes = {"train": 18, "val": 3, "trainval": 21, "test": 3}
  dataset = open_task(tmp_path, "nabirds", sizes=sizes)
  assert {name: len(split) for name, split in dataset.splits.items()} == sizes
  keys = [image("train", i, id) for i, id in enumerate(train)]
  val = expected_val(keys, 3)
  assert set(dataset.split("val").keys) == val
  assert dataset.split("train").keys == tuple(key for key in keys if key not in val)
  assert dataset.source == f"{tmp_path / 'nabirds'} (val cut out of train by MD5, not VPT's)"
  assert dataset.class_names == ("Ein Vogel (männlich)", "Other", "Third")
  assert dataset.split("test").labels.tolist() == [2, 1, 0]  # sparse ids, in the order of numbers
  check_pixels(dataset)


@pytest.mark.parametrize("count, val", [(5994, 600), (23929, 2393), (12000, 1200), (8144, 815)])
def test_the_cut_has_the_sizes_of_vpts_lists(count, val):
  parts = fgvc.cut([(f"{i}.jpg", i) for i in range(count)], "")
  assert (len(parts["train"]), len(parts["val"])) == (count - val, val)
  assert not set(parts["train"]) & set(parts["val"])


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_a_tree_with_one_held_out_folder_has_it_as_test(tmp_path, name):
  write_tree(tmp_path / "StanfordCars", (name,))
  dataset = open_task(tmp_path, "stanford_cars", sizes=OFFICIAL)
  assert {name: len(split) for name, split in dataset.splits.items()} == OFFICIAL
  test = [f"{name}/{id}/{name} {i}.jpg" for i, id in enumerate(IDS)]
  assert dataset.split("test").keys == tuple(test)
  below_train = [f"{id}/train {i}.jpg" for i, id in enumerate(IDS * 3)]
  assert dataset.split("val").keys == tuple(f"train/{key}" for key in expected_val(below_train, 1))
  assert dataset.class_names is None and "MD5" in dataset.source  # numbers are no names
  assert dataset.split("test").labels.tolist() == [0, 1, 2]  # 5, 17, 300: in the order of numbers
  check_pixels(dataset)


def test_a_tree_with_val_and_test_is_taken_as_it_is(tmp_path):
  write_tree(tmp_path / "oxfordflower", ("val", "test"), IDS * 2)
  sizes = {"train": 6, "val": 3, "trainval": 9, "test": 3}
  dataset = open_task(tmp_path, "oxford_flowers", sizes=sizes)
  assert {name: len(split) for name, split in dataset.splits.items()} == sizes
  assert dataset.split("val").keys[0] == "val/5/val 0.jpg" and "MD5" not in dataset.source


def test_a_tree_of_train_alone_and_test_is_left_without_val(tmp_path):
  """SSF's Flowers, whose train/ is the official training set and not the validation set."""
  write_tree(tmp_path / "OxfordFlowers", ("val",), IDS * 2)
  dataset = open_task(tmp_path, "oxford_flowers", sizes=SIZES)
  assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 6, "test": 3}
  with pytest.raises(ValueError, match="has no split 'trainval'; it has train, test"):
    dataset.split(dataset.train_split)


def test_folder_names_are_class_names(tmp_path):
  for part in ("train", "test"):
    for name in ("n02-Chihuahua", "n01-Äffchen"):
      for i in range(2):
        picture(tmp_path / part / name / f"{i}.jpg")
  sizes = {"train": 3, "val": 1, "trainval": 4, "test": 4}
  dataset = open_task(tmp_path, "stanford_dogs", num_classes=2, sizes=sizes)
  assert dataset.class_names == ("n01-Äffchen", "n02-Chihuahua")


def test_the_lists_of_vpt_come_before_the_official_ones_and_those_before_a_tree(tmp_path):
  write_tree(tmp_path, ("test",))
  assert len(open_task(tmp_path, sizes=OFFICIAL).split("train")) == 8
  write_tables(tmp_path)
  assert open_task(tmp_path, sizes=OFFICIAL).split("train").keys[0].endswith("0 ü.png")
  write_json(tmp_path)
  assert open_task(tmp_path).split("val").keys[0] == image("val", 0, 5)


def test_another_border_between_train_and_val_is_taken(tmp_path):
  write_json(tmp_path)
  dataset = open_task(tmp_path, sizes=SIZES | {"train": 7, "val": 1})
  assert (len(dataset.split("train")), len(dataset.split("val"))) == (6, 2)


def expect(root, error, *parts, name="cub_200_2011", **changes):
  with pytest.raises(error) as caught:
    open_task(root, name, **changes)
  for part in parts:
    assert part in str(caught.value)


def test_another_count_is_named(tmp_path):
  write_json(tmp_path)
  test = "test.json holds 3 images of test, but cub_200_2011 has 4"
  expect(tmp_path, ValueError, test, sizes=SIZES | {"test": 4})
  both = "val.json holds 8 images of train and val together, but cub_200_2011 has 9"
  expect(tmp_path, ValueError, "train.json and", both, sizes=SIZES | {"trainval": 9})
  classes = f"{tmp_path} has 3 classes, but cub_200_2011 has 200"
  expect(tmp_path, ValueError, classes, num_classes=200)


@pytest.mark.parametrize("write", [write_tables, write_tree])
def test_another_count_of_the_official_training_set_is_named(tmp_path, write):
  write(tmp_path)
  expect(tmp_path, ValueError, "holds 9 images of train and val together, but cub_200_2011 has 10",
         sizes=OFFICIAL | {"trainval": 10})
  expect(tmp_path, ValueError, "holds 3 images of test, but cub_200_2011 has 7",
         sizes=OFFICIAL | {"test": 7})


def test_the_real_rows_refuse_the_small_data(tmp_path):
  write_json(tmp_path / "CUB_200_2011")
  with pytest.raises(ValueError, match="has 3 classes, but cub_200_2011 has 200"):
    data.open("cub_200_2011", root=tmp_path, size=8)


def test_a_missing_list_is_named(tmp_path):
  write_json(tmp_path / "CUB")
  (tmp_path / "CUB" / "val.json").unlink()
  expect(tmp_path, FileNotFoundError, "no", "val.json", "all three are needed")
  write_tables(tmp_path / "nabirds")
  (tmp_path / "nabirds" / "train_test_split.txt").unlink()
  expect(tmp_path, FileNotFoundError, "train_test_split.txt", name="nabirds", sizes=OFFICIAL)


@pytest.mark.parametrize("write, sizes", [(write_json, SIZES), (write_tables, OFFICIAL)])
def test_a_listed_image_that_is_not_there_is_named(tmp_path, write, sizes):
  write(tmp_path)
  (tmp_path / "images" / image("test", 1, 17)).unlink()
  expect(tmp_path, FileNotFoundError, "lists", image("test", 1, 17), "does not exist", sizes=sizes)


def test_images_that_are_nowhere_are_named(tmp_path):
  write_json(tmp_path, "elsewhere")
  expect(tmp_path, FileNotFoundError, image("train", 0, 5), "images", "Images", "put the images")


def test_a_damaged_image_is_named_when_it_is_read(tmp_path):
  write_json(tmp_path)
  (tmp_path / "images" / image("test", 1, 17)).write_bytes(b"no picture")
  split = open_task(tmp_path).split("test")
  assert split.images([0, 2]).shape == (2, 8, 8, 3)
  with pytest.raises(ValueError, match="Cannot read the image .*017.Böser Vogel/test 1 ü.png"):
    split.images([1])


@pytest.mark.parametrize(
  "text, reason",
  [
    ("{", "is no JSON"),
    ("\xff", "is no JSON"),
    ("[]", "should hold"),
    ("{}", "should hold"),
    ('{"a.jpg": null}', "'a.jpg', found None"),
    ('{"a.jpg": 1.5}', "'a.jpg', found 1.5"),
    ('{"a.jpg": true}', "'a.jpg', found True"),
    ('{"a.jpg": "5"}', "some class ids are numbers and some are text"),
  ],
)
def test_lists_that_are_none_are_named(tmp_path, text, reason):
  write_json(tmp_path)
  (tmp_path / "val.json").write_bytes(text.encode("latin-1"))
  expect(tmp_path, ValueError, reason)


def test_an_image_in_two_lists_is_named(tmp_path):
  write_json(tmp_path)
  listed = json.loads((tmp_path / "val.json").read_text())
  (tmp_path / "val.json").write_text(json.dumps(listed | {image("test", 0, 300): 300}))
  expect(tmp_path, ValueError, f"lists {image('test', 0, 300)} in val and again in test",
         sizes=SIZES | {"trainval": 9})


@pytest.mark.parametrize(
  "table, line, reason",
  [
    ("images.txt", "te00-f0 twice.jpg", "line 13: expected '<id> <value>' with an id of its own"),
    ("images.txt", "alone", "line 13: expected"),
    ("images.txt", "new a.jpg", "image_class_labels.txt are not about the same images: 'new'"),
    ("train_test_split.txt", "new 1", "train_test_split.txt are not about the same images: 'new'"),
  ],
)
def test_tables_that_do_not_fit_are_named(tmp_path, table, line, reason):
  write_tables(tmp_path)
  with (tmp_path / table).open("a") as file:
    file.write(f"{line}\n")
  expect(tmp_path, ValueError, table, reason, sizes=OFFICIAL)


@pytest.mark.parametrize(
  "table, old, new",
  [("train_test_split.txt", "te01-f0 0", "te01-f0 2"), ("image_class_labels.txt", " 17\n", " x\n")],
)
def test_values_that_do_not_fit_are_named(tmp_path, table, old, new):
  write_tables(tmp_path)
  text = (tmp_path / table).read_text()
  assert old in text
  (tmp_path / table).write_text(text.replace(old, new, 1))
  expect(tmp_path, ValueError, table, "does not fit", sizes=OFFICIAL)


def test_a_tree_that_does_not_fit_is_named(tmp_path):
  write_tree(tmp_path, ())
  expect(tmp_path, ValueError, "no test/ (or val/)", sizes=OFFICIAL)
  write_tree(tmp_path, ("test",))
  (tmp_path / "test" / "400").mkdir()
  expect(tmp_path, ValueError, "do not hold the same classes: '400'", sizes=OFFICIAL)
  (tmp_path / "train" / "400").mkdir()
  expect(tmp_path, ValueError, "train/400 holds no image", sizes=OFFICIAL)


@pytest.mark.parametrize("case", ["unset", "gone", "empty", "other files"])
def test_a_root_without_the_task_says_what_is_expected(tmp_path, case):
  root = {"unset": None, "gone": tmp_path / "gone"}.get(case, tmp_path)
  if case == "other files":
    (tmp_path / "StanfordDogs" / "Images").mkdir(parents=True)
    (tmp_path / "StanfordDogs" / "train_list.mat").write_bytes(b"MATLAB 5.0")
  found = {
    "unset": "data.root is not set",
    "gone": "there is no folder",
    "empty": "has no folder stanford_dogs or StanfordDogs or",
    "other files": "StanfordDogs has none of its layouts",
  }[case]
  error = ValueError if root is None else FileNotFoundError
  expect(root, error, "stanford_dogs", found, "train.json, val.json, test.json", "KMnP/vpt",
         "train/ and test/", "configs/quickstart.py", name="stanford_dogs")


def test_the_fingerprint_follows_the_files_but_not_the_place(tmp_path):
  first = open_task(write_json(tmp_path / "a")).fingerprint()
  assert open_task(write_json(tmp_path / "b")).fingerprint() == first
  picture(tmp_path / "b" / "images" / image("val", 0, 5), 10, side=90)
  assert open_task(tmp_path / "b").fingerprint() != first
