"""The learning rate against values of the reference schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax.train.schedule import cosine

STEPS = 7

GOLDEN = {
  "ssf": (
    dict(lr=5e-3, warmup_lr=1e-7, min_lr=1e-8, epochs=100, warmup_epochs=10),
    [0, 1, 5, 9, 10, 11, 50, 90, 99, 100, 109],
    [1e-7, 5.0009e-4, 2.50005e-3, 4.50001e-3, 4.877641535e-3, 4.852202218e-3, 2.500005e-3,
     1.223684645e-4, 1.243596618e-6, 1e-8, 1e-8],
  ),
  "san_release": (
    dict(lr=1e-3, warmup_lr=1e-4, min_lr=1e-8, epochs=100, warmup_epochs=10, lag=1),
    [0, 1, 2, 10, 11, 50, 51, 100],
    [1e-4, 1e-4, 1.9e-4, 9.1e-4, 9.755285029e-4, 5.157102225e-4, 5.00005e-4, 2.567173499e-7],
  ),
  "vpt": (
    dict(lr=1.0, epochs=100, warmup_epochs=10, shifted=True),
    [0, 1, 10, 50, 99, 100],
    [0, 0.1, 1, 0.5868240888, 3.045865e-4, 0],
  ),
  "vpt_no_warmup": (
    dict(lr=2.0, min_lr=1.0, epochs=4, shifted=True), [0, 2, 4], [2, 1.5, 1]
  ),
  "imagenet": (
    dict(lr=1e-3, warmup_lr=1e-7, min_lr=1e-8, epochs=30, warmup_epochs=5),
    [4, 5, 29, 30, 39],
    [8.0002e-4, 9.330133718e-4, 2.749024925e-6, 1e-8, 1e-8],
  ),
}


@pytest.mark.parametrize("options, epochs, expected", GOLDEN.values(), ids=GOLDEN)
def test_equals_the_reference_at_the_start_and_the_end_of_epochs(options, epochs, expected):
  value = jax.jit(cosine(steps_per_epoch=STEPS, **options))
  for within in (0, STEPS - 1):
    found = [float(value(jnp.int32(epoch * STEPS + within))) for epoch in epochs]
    # The reference prints ten digits; ours are float32.
    np.testing.assert_allclose(found, expected, rtol=5e-7, atol=0)


def test_without_warmup_starts_at_the_peak_and_a_zero_rate_stays_zero():
  assert float(cosine(1e-3, steps_per_epoch=3, epochs=5)(0)) == np.float32(1e-3)
  off = cosine(0.0, steps_per_epoch=3, epochs=5, warmup_epochs=2, warmup_lr=1e-7, min_lr=1e-8)
  assert [float(off(step)) for step in (0, 4, 9, 40)] == [0, 0, 0, 0]
