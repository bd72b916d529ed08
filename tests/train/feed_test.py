"""Both feeds give the batches that `data.order` names."""

import jax
import numpy as np
import pytest

from peft_jax import data
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


def test_a_batch_that_does_not_divide_names_the_nearest():
  with pytest.raises(ValueError, match="33 does not divide over 8 devices; take 32 or 40"):
    shard.check_batch(33, jax.devices())
  with pytest.raises(ValueError, match="take 8"):
    shard.check_batch(3, jax.devices())
