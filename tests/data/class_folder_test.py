"""The user's own class folders."""

import shutil

import numpy as np
import pytest
from PIL import Image

from peft_jax import data


def picture(path, level=0, size=(10, 8)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, (level, level, level)).save(path)


def open_folder(root, size=8):
  return data.open("folder", root=root, size=size)


@pytest.fixture
def flat(tmp_path):
  root = tmp_path / "meine Bilder"
  for level, name in ((200, "zebra fish"), (40, "Äpfel"), (90, "kōala")):
    for i in range(10):
      picture(root / name / f"{name} {i}.png", level)
  return root


def test_a_flat_folder_holds_out_every_fifth_image_of_each_class(flat):
  dataset = open_folder(flat)
  assert dataset.class_names == ("kōala", "zebra fish", "Äpfel") and dataset.num_classes == 3
  train, val = dataset.split("train"), dataset.split("val")
  assert np.bincount(train.labels).tolist() == [8, 8, 8]
  assert np.bincount(val.labels).tolist() == [2, 2, 2]
  assert not set(train.keys) & set(val.keys)
  assert train.keys[0].startswith("kōala/kōala ")
  levels = np.asarray([90, 200, 40])
  for split in (train, val):
    np.testing.assert_array_equal(split.images()[:, 4, 4, 0], levels[split.labels])
  assert (dataset.train_split, dataset.eval_split) == ("train", "val")


VAL_KEYS = (
  "kōala/kōala 3.png",
  "kōala/kōala 5.png",
  "zebra fish/zebra fish 2.png",
  "zebra fish/zebra fish 9.png",
  "Äpfel/Äpfel 1.png",
  "Äpfel/Äpfel 8.png",
)


def test_what_is_held_out_is_a_function_of_the_names(flat, tmp_path):
  shutil.copytree(flat, tmp_path / "copy")
  assert open_folder(flat).split("val").keys == open_folder(tmp_path / "copy").split("val").keys
  assert open_folder(flat).split("val").keys == VAL_KEYS


def test_small_classes_keep_one_image_on_each_side(tmp_path):
  for name, count in (("a", 1), ("b", 2), ("c", 4)):
    for i in range(count):
      picture(tmp_path / name / f"{i}.png")
  dataset = open_folder(tmp_path)
  assert np.bincount(dataset.split("train").labels, minlength=3).tolist() == [1, 1, 3]
  assert np.bincount(dataset.split("val").labels, minlength=3).tolist() == [0, 1, 1]


@pytest.mark.parametrize("held_out", ["val", "validation", "valid", "test"])
def test_train_and_held_out_folders_are_taken_as_they_are(tmp_path, held_out):
  picture(tmp_path / "train" / "dog" / "1.jpg")
  picture(tmp_path / "train" / "cat" / "1.JPEG")
  picture(tmp_path / held_out / "dog" / "1.jpg")
  picture(tmp_path / held_out / "owl" / "1.png")
  dataset = open_folder(tmp_path)
  assert dataset.class_names == ("cat", "dog", "owl")  # the union
  name = "test" if held_out == "test" else "val"
  assert tuple(dataset.splits) == ("train", name) and dataset.eval_split == name
  assert dataset.split("train").labels.tolist() == [0, 1]
  assert dataset.split(name).labels.tolist() == [1, 2]
  assert dataset.split("train").keys == ("train/cat/1.JPEG", "train/dog/1.jpg")


def test_val_and_test_are_both_offered(tmp_path):
  for part in ("train", "val", "test"):
    for name in ("a", "b"):
      picture(tmp_path / part / name / "1.png")
  dataset = open_folder(tmp_path)
  assert tuple(dataset.splits) == ("train", "val", "test") and dataset.eval_split == "test"


def test_a_class_may_be_called_train(tmp_path):
  for name in ("train", "car"):
    for i in range(2):
      picture(tmp_path / name / f"{i}.png")
  assert open_folder(tmp_path).class_names == ("car", "train")


def test_other_files_and_hidden_ones_are_passed_over(flat):
  (flat / "Äpfel" / "notes.txt").write_text("x")
  (flat / "Äpfel" / "._1.png").write_text("x")
  (flat / ".git").mkdir()
  (flat / "__MACOSX").mkdir()
  (flat / "README.md").write_text("x")
  assert len(open_folder(flat).split("train")) == 24


def test_photographs_are_turned_as_the_camera_says(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 3  # upside down
  image = Image.new("L", (8, 8), 0)
  image.paste(255, (0, 0, 8, 4))
  for name in ("a", "b"):
    for i in range(2):
      picture(tmp_path / name / f"{i}.png")
  image.save(tmp_path / "a" / "photo.jpg", exif=exif)
  dataset = open_folder(tmp_path)
  split, number = next(
    (split, split.keys.index("a/photo.jpg"))
    for split in dataset.splits.values()
    if "a/photo.jpg" in split.keys
  )
  made = split.images([number])[0]
  assert made[0].max() < 20 and made[-1].min() > 235


def test_fingerprint_follows_names_and_sizes(flat):
  first = open_folder(flat).fingerprint()
  assert open_folder(flat, size=32).fingerprint() == first
  picture(flat / "Äpfel" / "Äpfel 0.png", 40, (100, 100))
  second = open_folder(flat).fingerprint()
  picture(flat / "Äpfel" / "new.png")
  assert len({first, second, open_folder(flat).fingerprint()}) == 3


def expect(error, root, *parts):
  with pytest.raises(error) as caught:
    open_folder(root)
  for part in parts:
    assert part in str(caught.value)


def test_no_root_or_one_that_is_not_there_is_refused(tmp_path):
  expect(ValueError, None, "data.root", "one folder a class")
  expect(FileNotFoundError, tmp_path / "gone", "gone is not a folder", "one folder a class")


def test_a_folder_without_class_folders_is_refused(tmp_path):
  picture(tmp_path / "1.png")
  expect(ValueError, tmp_path, "holds no class folders", "one folder a class")


def test_an_empty_class_folder_is_named(flat):
  (flat / "empty").mkdir()
  (flat / "empty" / "a.txt").write_text("x")
  expect(ValueError, flat, "empty holds no image (.jpg")


def test_one_class_is_too_few(tmp_path):
  picture(tmp_path / "only" / "1.png")
  picture(tmp_path / "only" / "2.png")
  expect(ValueError, tmp_path, "one class, 'only'", "two or more")


def test_one_image_a_class_is_too_few(tmp_path):
  picture(tmp_path / "a" / "1.png")
  picture(tmp_path / "b" / "1.png")
  expect(ValueError, tmp_path, "one image a class")


def test_training_images_alone_are_too_few(tmp_path):
  picture(tmp_path / "train" / "a" / "1.png")
  picture(tmp_path / "train" / "b" / "1.png")
  expect(ValueError, tmp_path, "neither val/ nor test/", "point data.root at")


def test_an_unreadable_image_is_named_at_once(flat):
  (flat / "Äpfel" / "kaputt 1.jpg").write_bytes(b"this is text")
  expect(ValueError, flat, "Cannot read the image", "kaputt 1.jpg")
