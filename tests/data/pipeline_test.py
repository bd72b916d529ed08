"""order, normalize and augment, on the host and under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from PIL import Image

from peft_jax import data
from peft_jax.data.augment import cut, draw_box

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 24, 20, 3), np.uint8)


def test_an_epoch_draws_every_example_once():
  for seed in (0, 7):
    for epoch in (0, 1, 5):
      steps = range(epoch * 8, epoch * 8 + 8)
      drawn = np.concatenate([data.order(seed, step, 4, 32) for step in steps])
      assert sorted(drawn) == list(range(32))


def test_the_remainder_dropped_is_another_one_each_epoch():
  left = []
  for epoch in range(4):
    steps = range(epoch * 31, epoch * 31 + 31)
    drawn = {int(i) for step in steps for i in data.order(0, step, 32, 1000)}
    assert len(drawn) == 31 * 32
    left.append(frozenset(range(1000)) - drawn)
  assert len(set(left)) == 4


def test_order_depends_on_seed_and_epoch_only():
  first = data.order(3, 5, 8, 100)
  assert isinstance(first, np.ndarray) and first.dtype == np.int32 and first.shape == (8,)
  np.testing.assert_array_equal(first, data.order(3, 5, 8, 100))
  others = [data.order(4, 5, 8, 100), data.order(3, 6, 8, 100), data.order(3, 17, 8, 100)]
  assert all((first != other).any() for other in others)


def test_order_is_the_same_under_jit_and_for_any_default_generator():
  expected = [data.order(3, step, 8, 30) for step in range(7)]
  traced = jax.jit(lambda seed, step: data.order(seed, step, 8, 30))
  for step in range(7):
    made = traced(3, step)
    assert made.dtype == jnp.int32
    np.testing.assert_array_equal(made, expected[step])
  scanned = jax.lax.scan(lambda _, step: (0, data.order(3, step, 8, 30)), 0, jnp.arange(7))[1]
  np.testing.assert_array_equal(scanned, expected)
  with jax.default_prng_impl("rbg"):
    np.testing.assert_array_equal(data.order(3, 2, 8, 30), expected[2])
  np.testing.assert_array_equal(data.order(3, np.int64(2), 8, 30), expected[2])


def test_a_batch_may_be_written_into_without_harm():
  first = data.order(0, 0, 8, 30)
  expected = first.copy()
  first[:] = 0
  np.testing.assert_array_equal(data.order(0, 0, 8, 30), expected)


def test_order_never_changes():
  assert data.order(0, 0, 6, 1000).tolist() == [235, 601, 129, 66, 134, 904]
  assert data.order(0, 1000, 6, 1000).tolist() == [971, 560, 155, 671, 377, 673]


@pytest.mark.parametrize("batch", [0, -1, 33])
def test_a_batch_larger_than_the_data_is_refused(batch):
  with pytest.raises(ValueError, match=f"batch of {batch} cannot be drawn from 32 .* 1 to 32"):
    data.order(0, 0, batch, 32)
  assert data.order(0, 0, 32, 32).shape == (32,)


def test_seeds_of_any_size_are_seeds():
  orders = {tuple(data.order(seed, 0, 8, 100).tolist()) for seed in (0, 1, 2**31, 2**32 - 1)}
  assert len(orders) == 4


@pytest.mark.parametrize(
  ("how", "low", "high"),
  [
    ("inception", [-1, -1, -1], [1, 1, 1]),
    ("imagenet", [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
     [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]),
    ("none", [0, 0, 0], [1, 1, 1]),
  ],
)
def test_normalize_maps_black_and_white(how, low, high):
  for dtype in (np.uint8, np.float32):
    images = np.stack([np.zeros((5, 4, 3)), np.full((5, 4, 3), 255)]).astype(dtype)
    for function in (data.normalize, jax.jit(data.normalize, static_argnums=(1, 2))):
      made = function(images, how, jnp.float32)
      assert made.dtype == jnp.float32 and made.shape == images.shape
      np.testing.assert_allclose(made[0, 0, 0], low, rtol=1e-6, atol=1e-7)
      np.testing.assert_allclose(made[1, 0, 0], high, rtol=1e-6)


def test_normalize_rounds_to_the_dtype_asked_for_at_the_end():
  made = data.normalize(IMAGES, "imagenet", jnp.bfloat16)
  assert made.dtype == jnp.bfloat16
  np.testing.assert_array_equal(made, data.normalize(IMAGES, "imagenet").astype(jnp.bfloat16))


def test_unknown_names_list_the_known_ones():
  with pytest.raises(ValueError, match="no normalize 'clap'.*inception, imagenet, clip, none"):
    data.normalize(IMAGES, "clap")
  with pytest.raises(ValueError, match="no augment 'mixup'.*none, flip, crop_flip"):
    data.augment(IMAGES, jax.random.key(0), "mixup")


def test_no_augmentation_changes_nothing():
  np.testing.assert_array_equal(data.augment(IMAGES, jax.random.key(0), "none"), IMAGES)


def test_flip_flips_about_half_of_the_images_and_nothing_else():
  made = np.asarray(data.augment(IMAGES, jax.random.key(0), "flip"))
  flipped = [(made[i] == IMAGES[i, :, ::-1]).all() for i in range(16)]
  kept = [(made[i] == IMAGES[i]).all() for i in range(16)]
  assert all(a != b for a, b in zip(flipped, kept, strict=True))
  assert 3 <= sum(flipped) <= 13


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crops_keep_shape_dtype_and_range_and_differ_between_images(dtype):
  same = np.broadcast_to(IMAGES[:1], IMAGES.shape).astype(dtype)
  made = np.asarray(data.augment(same, jax.random.key(1), "crop_flip"))
  assert made.dtype == dtype and made.shape == same.shape
  assert made.min() >= 0 and made.max() <= 255
  assert len({view.tobytes() for view in made}) == 16


def test_drawn_boxes_lie_inside_the_image_and_vary_as_promised():
  keys = jax.random.split(jax.random.key(0), 2000)
  top, left, height, width = jax.jit(jax.vmap(lambda key: draw_box(key, 224, 224)))(keys)
  assert top.min() >= 0 and left.min() >= 0
  assert (top + height).max() <= 224.001 and (left + width).max() <= 224.001
  area, ratio = height * width / 224**2, width / height
  assert 0.079 < area.min() < 0.1 and 0.95 < area.max() <= 1.001
  assert 0.74 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.34
  assert 0.45 < area.mean() < 0.56  # uniform, but boxes that do not fit are drawn again


def smooth(height, width):
  y, x = np.mgrid[:height, :width]
  waves = [np.sin(x / (5 + c)) * np.cos(y / (7 - c)) for c in range(3)]
  return np.rint(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize("box", [(10.0, 20.5, 30.25, 40.0), (0.0, 0.0, 64.0, 64.0)])
def test_a_crop_is_pillows_within_two_grey_levels(box):
  image = smooth(64, 64)
  top, left, height, width = box
  expected = Image.fromarray(image).resize(
    (64, 64), Image.Resampling.BICUBIC, (left, top, left + width, top + height)
  )
  made = jax.jit(cut)(image, *(jnp.float32(side) for side in box))
  assert np.abs(np.asarray(expected, np.int32) - np.asarray(made, np.int32)).max() <= 2


@pytest.mark.parametrize("how", ["flip", "crop_flip"])
def test_views_do_not_depend_on_the_device_that_makes_them(how):
  key = jax.random.key(2)
  alone = np.asarray(data.augment(IMAGES, key, how))
  assert (alone != IMAGES).any()
  mesh = Mesh(np.asarray(jax.devices()[:8]), ("data",), axis_types=(AxisType.Auto,))
  sharded = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
  function = jax.jit(data.augment, static_argnums=2)
  # A crop's sums may be taken in another order: rounding to whole grey levels may differ by one.
  tolerance = 0 if how == "flip" else 1
  for made, expected in (
    (function(sharded, key, how), alone),
    (function(IMAGES[8:], key, how, 8), alone[8:]),
  ):
    difference = np.abs(np.asarray(made, np.int32) - expected.astype(np.int32))
    assert difference.max() <= tolerance and (difference > 0).mean() < 1e-3
