"""The pictures that the tiny backbones are pretrained on, and their stored groups."""

import numpy as np
import pytest

from peft_jax import data
from peft_jax.data import mini_pretrain
from peft_jax.data.mini_pretrain import pictures
from peft_jax.data.mini_vtab import stored, texture


@pytest.fixture(scope="module")
def drawn():
  return np.stack([pictures.picture(i) for i in range(300)])


def test_pictures_are_functions_of_their_number_and_all_different(drawn):
  np.testing.assert_array_equal(pictures.picture(7), drawn[7])
  assert drawn.shape == (300, 64, 64, 3) and drawn.dtype == np.uint8
  assert len({image.tobytes() for image in drawn}) == 300


def test_pictures_have_colours_and_use_the_whole_range(drawn):
  grey = (drawn.max(-1) == drawn.min(-1)).all((1, 2))
  assert 0.1 < grey.mean() < 0.6  # photographs are grey, and one picture in five is made so
  assert drawn.min() == 0 and drawn.max() == 255
  assert np.median(drawn.std((1, 2, 3))) > 30


def test_only_training_images_are_used(monkeypatch):
  """Nothing changes when the test images of fashion and digits and the right halves are blank."""
  before = [pictures.picture(i) for i in range(60)]
  blank = []
  for photo in texture.photographs():
    photo = photo.copy()
    photo[:, photo.shape[1] // 2 :] = 0
    blank.append(photo)
  monkeypatch.setattr(texture, "photographs", lambda: blank)
  arrays = stored.arrays

  def without_test(name, *folder):
    found = arrays(name, *folder)
    return {key: value for key, value in found.items() if not key.startswith("test")}

  monkeypatch.setattr(stored, "arrays", without_test)
  pictures._images.cache_clear()
  for i, image in enumerate(before):
    np.testing.assert_array_equal(pictures.picture(i), image)


def test_dataset():
  dataset = data.open("mini_pretrain", size=32)
  train, val = dataset.split("train"), dataset.split("val")
  assert (len(train), len(val)) == (24000, 1000) and dataset.num_classes == 512
  assert train.images([3]).shape == (1, 32, 32, 3)
  np.testing.assert_array_equal(
    data.open("mini_pretrain", size=64).split("val").images([5])[0], pictures.picture(24005)
  )
  sizes = np.bincount(train.labels, minlength=512)
  assert sizes.min() >= 1 and sizes.max() < 24000 / 20 and np.median(sizes) > 20
  assert mini_pretrain.COUNTS == {name: len(split) for name, split in dataset.splits.items()}


def test_pictures_of_a_group_are_alike(drawn):
  """A shuffled file of labels would pass every test above."""
  labels = data.open("mini_pretrain", size=64).split("train").labels
  chosen = [np.flatnonzero(labels == group)[:4] for group in np.argsort(-np.bincount(labels))[:24]]
  small = np.stack([
    [pictures.picture(i).reshape(8, 8, 8, 8, 3).mean((1, 3)).ravel() for i in group]
    for group in chosen
  ])
  within = np.linalg.norm(small[:, 0] - small[:, 1], axis=1).mean()
  between = np.linalg.norm(small[:, 0] - np.roll(small[:, 1], 1, axis=0), axis=1).mean()
  assert within < 0.9 * between
