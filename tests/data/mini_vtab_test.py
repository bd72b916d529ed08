"""The embedded suite: golden counts, hashes, generators, cache."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from peft_jax import data
from peft_jax.data.mini_vtab import clevr, drawn, dsprites, stored, texture

NATIVE = {"fashion": 28, "digits": 8, "texture": 48}  # the drawn tasks: 64
NAMES = [task.name for task in data.MINI_VTAB]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFT_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def native(name):
  return data.open(name, size=NATIVE.get(name.removeprefix("mini_"), 64))


def keys_sha16(split):
  keys = "\n".join(key.split("/")[-1] for key in split.keys)
  return hashlib.sha256(keys.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", NAMES)
def test_sizes_labels_and_keys(name):
  dataset = native(name)
  sizes = {key: len(split) for key, split in dataset.splits.items()}
  assert sizes == data.TASKS[name].sizes
  for split in dataset.splits.values():
    assert split.labels.dtype == np.int32
    assert set(split.labels) == set(range(dataset.num_classes))
    assert len(set(split.keys)) == len(split)
  train, test = dataset.split("train800val200"), dataset.split("test")
  assert train.keys == dataset.split("train800").keys + dataset.split("val200").keys
  assert not set(train.keys) & set(test.keys)


HISTOGRAMS = {
  "mini_fashion": {
    "train800": [84, 82, 84, 87, 80, 84, 81, 71, 65, 82],
    "val200": [23, 20, 18, 20, 23, 14, 16, 21, 25, 20],
    "test": [205, 194, 223, 187, 211, 193, 185, 205, 186, 211],
  },
  "mini_digits": {
    "train800": [87, 80, 79, 80, 78, 80, 86, 74, 74, 82],
    "val200": [18, 17, 14, 27, 22, 22, 17, 21, 25, 17],
    "test": [73, 85, 84, 76, 81, 80, 78, 84, 75, 81],
  },
  "mini_dsprites_loc": {
    "train800": [54, 42, 45, 45, 48, 54, 49, 48, 62, 51, 50, 60, 50, 47, 53, 42],
    "val200": [14, 11, 12, 9, 12, 8, 13, 15, 7, 14, 13, 8, 16, 13, 16, 19],
  },
  "mini_dsprites_ori": {
    "train800": [59, 43, 67, 50, 53, 45, 58, 43, 61, 38, 52, 42, 56, 35, 57, 41],
    "val200": [15, 13, 8, 8, 15, 10, 15, 8, 18, 10, 23, 8, 11, 5, 21, 12],
  },
}


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_label_histograms(name):
  dataset = native(name)
  for split, expected in HISTOGRAMS[name].items():
    assert np.bincount(dataset.split(split).labels).tolist() == expected


def test_fashion_holds_the_images_tfds_would_store_first():
  dataset = native("mini_fashion")
  expected = {
    "train800": "705d9003ee6df3b6",
    "val200": "2e34ff47131d8ad8",
    "test": "71ec83e83416f9de",
  }
  for split, digest in expected.items():
    assert keys_sha16(dataset.split(split)) == digest
  images = dataset.split("train800val200").images()
  assert images[..., 0].sum(dtype=np.int64) == 57_930_633
  np.testing.assert_array_equal(images[..., 0], images[..., 2])
  assert dataset.split("test").images()[..., 0].sum(dtype=np.int64) == 116_008_479


def test_digits_span_all_grey_levels():
  images = native("mini_digits").split("test").images()
  assert set(np.unique(images)) == {(v * 255 + 8) // 16 for v in range(17)}


def test_dsprites_uses_the_indices_and_labels_of_vtab():
  order = data.tfds_order(range(737280), "train")
  dataset = native("mini_dsprites_loc")
  assert keys_sha16(dataset.split("train800")) == "54130b46ffd22579"
  assert keys_sha16(dataset.split("val200")) == "86005e8c04783edc"
  assert dataset.split("test").keys == tuple(map(str, order[663552:665552]))
  assert dataset.split("train800").labels[:10].tolist() == [0, 0, 7, 6, 7, 11, 7, 5, 6, 14]
  orientation = native("mini_dsprites_ori").split("train800").labels
  assert orientation[:10].tolist() == [6, 8, 0, 7, 9, 12, 14, 1, 14, 15]
  whole_test = dsprites.location(order[663552:])
  digest = hashlib.sha256(",".join(map(str, whole_test)).encode()).hexdigest()[:16]
  assert digest == "f4d6cee876fee9e5"


def test_a_sprite_lies_where_its_index_says():
  for shape in range(3):
    for x, y in ((0, 0), (31, 0), (7, 20)):
      for orientation in (0, 13):
        index = 245760 * shape + 40960 * 5 + 1024 * orientation + 32 * x + y
        rows, columns = np.nonzero(dsprites.picture(index))
        middle = (columns.mean() + 0.5, rows.mean() + 0.5)
        step = (64 - 2 * 14) / 31
        np.testing.assert_allclose(middle, (14 + step * x, 14 + step * y), atol=1.5)


def test_a_sprite_has_another_picture_at_every_orientation():
  for shape in range(3):
    index = 245760 * shape + 40960 * 5 + 32 * 16 + 16
    pictures = {dsprites.picture(index + 1024 * o).tobytes() for o in range(40)}
    assert len(pictures) == 40


@pytest.mark.parametrize(
  ("depths", "distance"),
  [([8.0, 9, 12], 0), ([8.0001, 9, 12], 1), ([14, 8.5, 9], 1), ([9.6] * 3, 4), ([10.5] * 10, 5)],
)
def test_clevr_labels_follow_vtabs_rules(depths, distance):
  assert clevr.label("dist", np.asarray(depths)) == distance
  assert clevr.label("count", np.asarray(depths)) == len(depths) - 3


def test_clevr_scenes_keep_their_promises():
  for index in range(200):
    scene = clevr.scene("dist", "train", index)
    depth = np.sort(scene.depth)
    assert 3 <= len(depth) <= 10 and 7 <= depth[0] and depth[-1] <= 14
    assert depth[1] - depth[0] >= 0.3 - 1e-9
    assert (scene.centre - scene.radius[:, None] >= 0).all()
    assert (scene.centre + scene.radius[:, None] <= clevr.SIDE).all()
    np.testing.assert_array_equal(scene.depth, clevr.depths("dist", "train", index))


def test_clevr_scenes_differ_by_index_split_and_task():
  pictures = [clevr.picture(*w) for w in (("count", "train", 0), ("count", "train", 1),
                                          ("count", "test", 0), ("dist", "train", 0))]
  assert len({made.tobytes() for made in pictures}) == 4
  np.testing.assert_array_equal(pictures[0], clevr.picture("count", "train", 0))


def test_texture_crops_come_from_separate_halves(monkeypatch):
  # Photographs that are 40 on the left half, 200 on the right, and a gradient from top to bottom.
  photos = [np.full((400, 600), 40, np.uint8) for _ in texture.CLASSES]
  for photo in photos:
    photo[:, 292:] = 200  # the first column no training crop may touch
    photo[:, 308:] = 90
  monkeypatch.setattr(texture, "photographs", lambda: photos)
  for name in texture.COUNTS:
    images, _ = texture.split.__wrapped__(name)
    assert (images.reshape(len(images), -1).std(1) == 0).all()


def test_textures_give_no_cue_by_brightness():
  train = native("mini_texture").split("train800")
  images = train.images()[..., 0].astype(np.float64)
  means = [images[train.labels == k].mean() for k in range(8)]
  assert max(means) - min(means) < 12
  assert images.std((1, 2)).max() < 62  # less where a few bright spots were clipped


# SHA-256 (16 digits) of labels and images of each split in native size; of the first 64 images for
# the clevr tasks, whose whole splits the slow test below covers.
GOLDEN = {
  "mini_fashion": ("6afaa01cc7a03a28", "759462d3500327e4"),
  "mini_digits": ("fd9ab95968399c2c", "856de283c2eca9f7"),
  "mini_texture": ("a3b3bba6bf910809", "96184baaa2fbf8ff"),
  "mini_dsprites_loc": ("badb9b59000ba393", "23230c427cfd1df9"),
  "mini_dsprites_ori": ("867c8f4dcb2fc924", "5bebf0c163d7c8bb"),
  "mini_clevr_count": ("82f2fb8829dd5678", "4b138107423f489b"),
  "mini_clevr_dist": ("fc1b67c865d47ae5", "e81d45a0e7152bfb"),
}
WHOLE = {
  "mini_clevr_count": ("9b199a84e90fbc11", "35d9eb8833d4ca9c"),
  "mini_clevr_dist": ("5271fc31fef3cdcd", "becee27fe2b158e7"),
}


def sha16(split, indices=None):
  digest = hashlib.sha256(split.labels.astype("<i4").tobytes())
  digest.update(split.images(indices).tobytes())
  return digest.hexdigest()[:16]


@pytest.mark.parametrize("name", NAMES)
def test_images_and_labels_never_change(name):
  dataset = native(name)
  first = range(64) if "clevr" in name else None
  found = tuple(sha16(dataset.split(split), first) for split in ("train800val200", "test"))
  assert found == GOLDEN[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_all_drawn_images_never_change(name):
  dataset = native(name)
  found = tuple(sha16(dataset.split(split)) for split in ("train800val200", "test"))
  assert found == WHOLE[name]


def test_fingerprints_differ_between_tasks_and_not_between_sizes():
  prints = {name: native(name).fingerprint() for name in NAMES}
  assert len(set(prints.values())) == 7
  assert data.open("mini_digits", size=32).fingerprint() == prints["mini_digits"]


def test_stored_arrays_need_no_pickle():
  for name in ("fashion", "digits", "dsprites"):
    assert all(array.dtype.kind in "iu" for array in stored.arrays(f"{name}.npz").values())


def counting():
  calls = []

  def draw(index):
    calls.append(index)
    return np.full((2, 2), index, np.uint8)

  return calls, draw


def test_the_cache_is_written_once_everything_is_drawn(cache):
  calls, draw = counting()
  pictures = drawn.Drawn("toy", 4, (2, 2), draw)
  assert [int(pictures(i)[0, 0]) for i in (2, 0, 2, 1)] == [2, 0, 2, 1]
  assert calls == [2, 0, 1] and not cache.exists()
  pictures(3)
  assert [file.name for file in cache.iterdir()] == ["toy.npz"]
  again = drawn.Drawn("toy", 4, (2, 2), draw)
  assert [int(again(i)[0, 0]) for i in range(4)] == [0, 1, 2, 3]
  assert calls == [2, 0, 1, 3]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other shape", "pickle", "text"])
def test_a_corrupt_cache_file_is_made_again(cache, damage):
  calls, draw = counting()
  whole = drawn.Drawn("toy", 4, (2, 2), draw)
  for i in range(4):
    whole(i)
  file, good = cache / "toy.npz", (cache / "toy.npz").read_bytes()
  if damage == "other shape":
    np.savez(file, images=np.zeros((3, 2, 2), np.uint8))
  elif damage == "pickle":
    np.savez(file, images=np.asarray([{}], object))
  else:
    middle = len(good) // 2
    flipped = good[:60] + bytes([good[60] ^ 255]) + good[61:]
    file.write_bytes(
      {"empty": b"", "cut": good[:middle], "flipped": flipped, "text": b"no npz"}[damage]
    )
  again = drawn.Drawn("toy", 4, (2, 2), draw)
  assert [int(again(i)[0, 0]) for i in range(4)] == [0, 1, 2, 3]
  assert calls == [0, 1, 2, 3] * 2
  assert file.read_bytes() == good


def test_a_cache_folder_that_cannot_be_written_is_ignored(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("not a folder")
  monkeypatch.setenv("PEFT_JAX_CACHE", str(tmp_path / "file"))
  calls, draw = counting()
  pictures = drawn.Drawn("toy", 2, (2, 2), draw)
  assert [int(pictures(i)[0, 0]) for i in range(2)] == [0, 1]


def test_nothing_heavy_is_imported():
  code = """
import sys
from peft_jax import data
for name in ("mini_fashion", "mini_texture", "mini_dsprites_loc", "mini_clevr_count"):
  data.open(name, size=16).split("val200").images([0, 1])
heavy = {"tensorflow", "tensorflow_datasets", "torch", "sklearn", "skimage", "cv2"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  subprocess.run([sys.executable, "-c", code], check=True, env=environment)
