"""Mixup, cutmix and random erasing against NumPy, and against timm's functions where installed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import data
from peft_jax.data.mix import cut_box, erased_box

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 24, 20, 3), np.uint8)
KEYS = jax.random.split(jax.random.key(5), 400)
erase = jax.jit(data.erase, static_argnums=2)


def test_off_changes_nothing():
  images, share = data.mix(IMAGES, KEYS[0])
  assert images is IMAGES and share is None
  assert data.erase(IMAGES, KEYS[0], 0.0) is IMAGES


@functools.cache
def mixed(mixup, cutmix):
  """(images [400, 9, 24, 20, 3], shares [400], whether it was cutmix [400]) of KEYS."""
  images, shares = jax.jit(jax.vmap(lambda key: data.mix(IMAGES, key, mixup, cutmix)))(KEYS)
  assert images.dtype == shares.dtype == jnp.float32
  whole = (images == jnp.round(images)).all((1, 2, 3, 4))  # a blend has fractions
  return np.asarray(images), np.asarray(shares), np.asarray(whole)


def test_mixup_is_the_sum_with_the_reversed_batch():
  images, shares, cut = mixed(0.2, 0.0)
  assert cut.mean() < 0.2  # Beta(0.2, 0.2) is often a whole 1 within rounding
  for made, share in zip(images[:9], shares.astype(np.float64), strict=False):
    np.testing.assert_allclose(made, IMAGES * share + IMAGES[::-1] * (1 - share), atol=1e-4)
    np.testing.assert_allclose(made[4], IMAGES[4], atol=1e-4)
  # The variance of Beta(a, a) is 1 / (8 a + 4).
  assert shares.mean() == pytest.approx(0.5, abs=0.05)
  assert shares.var() == pytest.approx(1 / 5.6, rel=0.15)


def test_of_both_either_is_drawn_half_of_the_time():
  images, shares, cut = mixed(0.8, 1.0)
  assert 0.4 < cut.mean() < 0.6
  assert shares[~cut].mean() == pytest.approx(0.5, abs=0.06)
  assert shares[~cut].var() == pytest.approx(1 / 10.4, rel=0.2)


def test_cutmix_pastes_a_box_of_the_reversed_batch_and_counts_its_pixels():
  images, shares, cut = mixed(0.8, 1.0)
  sizes = set()
  for made, share in zip(images[cut][:30], shares[cut], strict=False):
    pasted = (made[0] == IMAGES[-1]).all(-1)
    rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
    assert pasted.sum() == len(rows) * len(columns)  # a box
    if len(rows):
      assert len(rows) == rows[-1] - rows[0] + 1 and len(columns) == columns[-1] - columns[0] + 1
    np.testing.assert_allclose(share, 1 - pasted.mean(), atol=1e-6)
    np.testing.assert_array_equal(made, np.where(pasted[None, :, :, None], IMAGES[::-1], IMAGES))
    sizes.add(pasted.sum())
  assert len(sizes) > 20


def test_cutmix_alone_never_blends_and_keeps_what_numpys_boxes_keep():
  _, shares, cut = mixed(0.0, 1.0)
  assert cut.all()
  draw, kept = np.random.default_rng(0), 1
  side = np.sqrt(1 - draw.beta(1, 1, 10**5))
  for size in (24, 20):
    length, middle = (size * side).astype(int), draw.integers(0, size, 10**5)
    low, high = middle - length // 2, middle + (length + 1) // 2
    kept *= (high.clip(0, size) - low.clip(0, size)) / size
  kept = 1 - kept
  assert shares.mean() == pytest.approx(kept.mean(), abs=0.03)
  assert shares.std() == pytest.approx(kept.std(), rel=0.1)


def test_cut_boxes_are_timms(monkeypatch):
  module = pytest.importorskip("timm.data.mixup")
  boxes = jax.jit(lambda key, share: cut_box(key, share, 24, 20))
  for key in KEYS[:20]:
    share = np.float32(jax.random.uniform(key))
    middles = iter([int(jax.random.randint(one, (), 0, size))
                    for one, size in zip(jax.random.split(key), (24, 20), strict=True)])
    monkeypatch.setattr(module.np.random, "randint", lambda *_, size, m=middles: next(m))
    box, kept = module.cutmix_bbox_and_lam((9, 3, 24, 20), share)
    assert tuple(int(side) for side in boxes(key, share)) == box


def test_erased_boxes_vary_as_promised():
  top, bottom, left, right = np.asarray(
    jax.jit(jax.vmap(lambda key: erased_box(key, 224, 196)))(jax.random.split(KEYS[0], 4000))
  )
  high, wide = bottom - top, right - left
  assert top.min() == left.min() == 0 and bottom.max() == 224 and right.max() == 196
  assert (0 < high).all() and (high < 224).all() and (0 < wide).all() and (wide < 196).all()
  area, aspect = high * wide / (224 * 196), high / wide
  assert 0.019 < area.min() < 0.022 and 0.32 < area.max() < 0.337
  assert 0.29 < aspect.min() < 0.31 and 3.2 < aspect.max() < 3.45
  assert abs(np.log(aspect[area < 0.2]).mean()) < 0.05
  assert np.log(aspect[area < 0.2]).std() == pytest.approx(2 * np.log(1 / 0.3) / 12**0.5, rel=0.05)
  assert (top / (224 - high)).mean() == pytest.approx(0.5, abs=0.02)
  assert (left / (196 - wide)).mean() == pytest.approx(0.5, abs=0.02)


def test_erasing_fills_a_box_of_some_images_with_noise():
  images = np.full((400, 32, 24, 3), 7.0, np.float32)
  made = np.asarray(erase(images, KEYS[1], 0.25))
  changed = made != 7
  assert (changed.all(-1) == changed.any(-1)).all()
  erased = changed.any((1, 2, 3))
  assert 0.18 < erased.mean() < 0.32
  for mask in changed[erased][:20, :, :, 0]:
    assert mask.sum() == mask.any(0).sum() * mask.any(1).sum()
    assert 0.015 < mask.mean() < 0.36
  noise = made[changed]
  assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(1, abs=0.02)
  assert len(np.unique(noise)) > 0.99 * noise.size  # every channel of every pixel has its own
  assert np.asarray(erase(images[:9], KEYS[2], 1.0) != 7).any((1, 2, 3)).all()


def test_an_image_that_no_box_fits_stays():
  images = np.full((50, 1, 1, 3), 7.0, np.float32)
  assert (erase(images, KEYS[3], 1.0) == 7).all()


def test_a_part_of_the_batch_is_erased_as_in_the_whole():
  images = IMAGES.astype(np.float32)
  whole = np.asarray(erase(images, KEYS[0], 0.5))
  assert (whole != images).any((1, 2, 3))[6:].any()
  np.testing.assert_allclose(erase(images[6:], KEYS[0], 0.5, 6), whole[6:], rtol=1e-5, atol=1e-6)
