"""Both feeds give the batches that `data.order` names."""

import jax
import numpy as np
import pytest

from peft_jax import data
from peft_jax.data.rand_augment import parse
from peft_jax.train import feed, shard


@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_resident_and_streamed_batches_are_the_same_on_all_devices(tiny, how):
  split = data.open("mini_digits", size=16).split("train800")
  parallel = shard.parallel(how)
  assert len(parallel.devices) == 8
  kept = feed.feed(split, 64, 3, parallel, resident_mb=100)
  read = feed.feed(split, 64, 3, parallel, resident_mb=0)
  previous = None
  for step in (0, 1, 5, 12, 13):  # the last ones lie in the second epoch
    chosen = np.asarray(data.order(3, step, 64, 800))
    for batch in (kept(step), read(step)):
      np.testing.assert_array_equal(batch["image"], split.images(chosen))
      np.testing.assert_array_equal(batch["label"], split.labels[chosen])
      assert len(batch["image"].sharding.device_set) == 8
      assert batch["image"].addressable_shards[0].data.shape == (8, 16, 16, 3)
    assert previous is None or (previous != chosen).any()
    previous = chosen


@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_views_are_the_same_for_any_devices_and_after_a_restart(how):
  split = data.open("mini_texture", size=16).split("train800")
  view = data.view.View("random_resized_crop", rand_augment=parse("rand-m9-mstd0.5-inc1"))
  feeds = [
    feed.feed(split, 24, 3, shard.parallel(how, jax.devices()[:count]), 100, view)
    for count in (1, 8)
  ]
  seen = {step: feeds[0](step)["image"] for step in range(4)}
  for step, images in seen.items():
    later = feed.feed(split, 24, 3, shard.parallel(how), 0, view)(step)  # begins with this step
    chosen = data.order(3, step, 24, 800)
    draws = [data.view.draws(3, step, place) for place in range(24)]
    np.testing.assert_array_equal(images, split.views(chosen, view, draws))
    np.testing.assert_array_equal(later["image"], images)
    np.testing.assert_array_equal(later["label"], split.labels[chosen])
    np.testing.assert_array_equal(feeds[1](step)["image"], images)
    assert len(later["image"].sharding.device_set) == 8
  other = feed.feed(split, 24, 4, shard.parallel(how), 0, view)
  assert (np.asarray(other(0)["image"]) != seen[0]).any()


def test_a_batch_that_does_not_divide_names_the_nearest():
  with pytest.raises(ValueError, match="33 does not divide over 8 devices; take 32 or 40"):
    shard.check_batch(33, jax.devices())
  with pytest.raises(ValueError, match="take 8"):
    shard.check_batch(3, jax.devices())
