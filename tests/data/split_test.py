"""Order rule against hashes of the key lists TFDS's own files hold; Split; Dataset."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from peft_jax import data
from peft_jax.data.split import concatenate


def sha16(values, between="\n"):
  return hashlib.sha256(between.join(map(str, values)).encode()).hexdigest()[:16]


EUROSAT = dict(
  zip(
    data.TASKS["eurosat"].class_names,
    (3000, 3000, 3000, 2500, 2500, 2000, 2500, 3000, 2500, 3000),
    strict=True,
  )
)
RESISC45 = dict.fromkeys(data.TASKS["resisc45"].class_names, 700)

# split name, keys, the first of them in TFDS's order, and SHA-256 of slices of it
ORDERS = {
  "cifar100": (
    "train",
    range(50000),
    [16399, 1680, 47917],
    {(0, 800): "5b25ee0661c3bc4a", (45000, 45200): "93377e439662509b"},
  ),
  "cifar100 test": ("test", range(10000), [], {(0, None): "aa6d3ee41c0a810e"}),
  "svhn": (
    "train",
    range(73257),
    [16399, 1680, 47917],
    {(0, 800): "901fe4f6d4f65bc8", (65931, 66131): "36ae944d2e322a4f"},
  ),
  "smallnorb": ("train", range(24300), [16399, 1680, 17307], {(0, 800): "438b845e2bd4a468"}),
  "smallnorb test": (
    "test",
    range(24300),
    [],
    {(0, 200): "d9fca0e85af945f0", (12150, None): "f5e0032ca6dc71ce"},
  ),
  "patch_camelyon": (
    "validation",
    [f"valid_{i}" for i in range(32768)],
    [],
    {(0, 200): "b3998b44bc8423a1"},
  ),
  "clevr": (
    "train",
    [f"CLEVR_train_{i:06d}.png" for i in range(70000)],
    [f"CLEVR_train_{i}.png" for i in ("043876", "033421", "062025")],
    {(0, 800): "5dc1033102716488", (63000, 63200): "9a9150228251ccef"},
  ),
  "eurosat": (
    "train",
    [f"{name}_{name}_{i}.jpg" for name, n in EUROSAT.items() for i in range(1, n + 1)],
    ["Forest_Forest_687.jpg", "Residential_Residential_188.jpg"],
    {
      (0, 800): "7dac90dec1b73063",
      (16200, 16400): "5c9a3ab3702faf20",
      (21600, None): "244a530e55bd9aff",
    },
  ),
  "resisc45": (
    "train",
    [f"{name}_{name}_{i:03d}.jpg" for name, n in RESISC45.items() for i in range(1, n + 1)],
    [],
    {
      (0, 800): "7c42d524f21f8a68",
      (18900, 19100): "2a2bb0da49b4bb17",
      (25200, None): "6588d8e91cd5eca4",
    },
  ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_order_is_that_of_tensorflow_datasets(name):
  split, keys, first, slices = ORDERS[name]
  order = data.tfds_order(keys, split)
  assert order[: len(first)] == first
  for (start, stop), expected in slices.items():
    assert sha16(order[start:stop]) == expected


def test_labels_follow_from_the_order_where_names_give_them():
  order = data.tfds_order(ORDERS["eurosat"][1], "train")
  classes = {name: i for i, name in enumerate(EUROSAT)}
  labels = [classes[key.split("_")[0]] for key in order]
  assert np.bincount(labels[:800]).tolist() == [94, 96, 91, 78, 81, 41, 79, 83, 70, 87]
  assert np.bincount(labels[16200:16400]).tolist() == [13, 20, 28, 18, 14, 17, 13, 35, 24, 18]
  assert sha16(labels[:800], ",") == "8c9b96f0b1050c36"
  assert sha16(labels[21600:], ",") == "6f68aef5524269e9"


def numbered(name, values):
  """A split whose image i is grey level values[i] all over."""
  return data.Split(
    name=name,
    labels=np.asarray(values, np.int32) % 3,
    keys=tuple(map(str, values)),
    read=lambda i: Image.new("RGB" if i % 2 else "L", (4, 4), (values[i],) * (3 if i % 2 else 1)),
    content=lambda: bytes(values),
    size=6,
    resize="bicubic_pil",
  )


@pytest.mark.parametrize("count", [1, 3, 40])  # 40 images are read by several threads
def test_images_come_in_the_order_asked_for(count):
  split = numbered("train", range(100))
  indices = np.random.default_rng(0).permutation(100)[:count]
  images = split.images(indices)
  assert images.dtype == np.uint8 and images.shape == (count, 6, 6, 3)
  np.testing.assert_array_equal(images, np.broadcast_to(indices[:, None, None, None], images.shape))


def test_images_defaults_to_all_and_takes_none():
  assert numbered("train", range(5)).images().shape == (5, 6, 6, 3)
  assert numbered("train", range(5)).images([]).shape == (0, 6, 6, 3)


@pytest.mark.parametrize("indices", [[5], [-1], [0, 7]])
def test_an_index_outside_the_split_is_refused(indices):
  with pytest.raises(IndexError, match=r"holds images 0\.\.4; asked for"):
    numbered("train", range(5)).images(indices)


def test_concatenated_splits_keep_order_labels_and_keys():
  both = concatenate("both", numbered("a", range(5)), numbered("b", range(50, 53)))
  assert both.keys == ("0", "1", "2", "3", "4", "50", "51", "52")
  assert both.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
  assert both.images()[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 50, 51, 52]


def dataset(**change):
  fields = dict(
    name="toy",
    group="natural",
    num_classes=3,
    class_names=None,
    splits={"train": numbered("train", range(5))},
    train_split="train",
    eval_split="train",
    source="here",
  )
  return data.Dataset(**{**fields, **change})


def test_fingerprint_tells_names_labels_keys_and_content_apart():
  first = numbered("train", range(5))
  same = [dataset(), dataset(source="elsewhere")]
  different = [
    dataset(name="other"),
    dataset(num_classes=4),
    dataset(splits={"val": first}),
    dataset(splits={"train": numbered("train", range(6))}),
    dataset(splits={"train": numbered("train", [0, 1, 2, 3, 7])}),
  ]
  assert len({made.fingerprint() for made in same}) == 1
  assert len({made.fingerprint() for made in same + different}) == 1 + len(different)


def test_an_unknown_split_lists_the_known_ones():
  with pytest.raises(ValueError, match=r"Task 'toy' \(here\) has no split 'test'; it has train"):
    dataset().split("test")
