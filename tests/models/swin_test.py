"""Swin's tree, windows, relative positions and shift mask, against slow plain definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models
from peft_jax.models import swin


def tree(model):
  images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  return jax.tree.map(lambda x: x.shape, params)


def test_the_parameter_tree():
  def dense(i, o):
    return {"kernel": (i, o), "bias": (o,)}

  def norm(c):
    return {"scale": (c,), "bias": (c,)}

  def block(c, heads):
    attn = {"norm": norm(c), **{name: dense(c, c) for name in ("q", "k", "v", "proj")},
            "rel_pos": (169, heads)}
    return {"attn": attn, "mlp": {"norm": norm(c), "fc1": dense(c, 4 * c), "fc2": dense(4 * c, c)}}

  assert tree(models.create("swin_test", num_classes=5)) == {
    "patch_embed": {"proj": {"kernel": (4, 4, 3, 12), "bias": (12,)}, "norm": norm(12)},
    "stages_0": {"blocks_0": block(12, 2), "blocks_1": block(12, 2)},
    "stages_1": {"downsample": {"norm": norm(48), "reduction": {"kernel": (48, 24)}},
                 "blocks_0": block(24, 4), "blocks_1": block(24, 4)},
    "norm": norm(24), "head": dense(24, 5),
  }


def test_a_map_smaller_than_the_window_is_one_window():
  shapes = tree(models.create("swin_test", num_classes=5, image_size=40))  # maps 10 and 5
  assert shapes["stages_0"]["blocks_1"]["attn"]["rel_pos"] == (169, 2)
  assert shapes["stages_1"]["blocks_1"]["attn"]["rel_pos"] == (81, 4)


@pytest.mark.parametrize("window", [1, 3, 7, 12])
def test_the_relative_index(window):
  places = list(itertools.product(range(window), repeat=2))
  for (a, (ra, ca)), (b, (rb, cb)) in itertools.product(enumerate(places), repeat=2):
    row = (ra - rb + window - 1) * (2 * window - 1) + ca - cb + window - 1
    assert swin.relative_index(window)[a, b] == row


@pytest.mark.parametrize("side, window, shift", [(6, 3, 1), (14, 7, 3), (8, 4, 2), (24, 12, 6)])
def test_the_mask_parts_what_the_roll_brought_together(side, window, shift):
  # A token of the rolled map came from this place; only neighbours of the unrolled map may meet.
  came_from = (np.arange(side) + shift) % side
  mask, n = swin.shift_mask(side, window, shift), side // window
  assert mask.shape == (n * n, window**2, window**2) and set(np.unique(mask)) == {0.0, -100.0}
  for win in range(n * n):
    rows = came_from[np.arange(window) + win // n * window]
    columns = came_from[np.arange(window) + win % n * window]
    places = np.array(list(itertools.product(rows, columns)))
    near = np.abs(places[:, None] - places[None]).max(-1) < window
    np.testing.assert_array_equal(mask[win] == 0, near)


def test_merging_goes_down_columns_first():
  c, x = 2, np.arange(3 * 3 * 2, dtype=np.float32).reshape(1, 3, 3, 2)  # odd: zeros are appended
  module = swin.Merging(swin.Numerics(eps=1e-5))
  params = module.init(jax.random.key(0), jnp.asarray(x))["params"]
  kernel = np.random.RandomState(0).standard_normal((4 * c, 2 * c)).astype(np.float32)
  params = {**params, "reduction": {"kernel": jnp.asarray(kernel)}}
  y = module.apply({"params": params}, jnp.asarray(x))
  padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
  for i, j in itertools.product(range(2), repeat=2):
    four = [padded[0, 2 * i + down, 2 * j + right]
            for down, right in ((0, 0), (1, 0), (0, 1), (1, 1))]
    v = np.concatenate(four)
    want = (v - v.mean()) / np.sqrt(v.var() + 1e-5) @ kernel
    np.testing.assert_allclose(y[0, i, j], want, rtol=1e-4, atol=1e-5)


def test_attention_stays_inside_windows():
  # A token moves exactly the tokens of its own window, shifted or not.
  num = swin.Numerics(eps=1e-5)
  x = jnp.asarray(np.random.RandomState(0).standard_normal((1, 8, 8, 4)), jnp.float32)
  for shift, (low, high) in ((0, (4, 8)), (2, (2, 6))):
    module = swin.Attention(num, 2, 4, shift)
    variables = module.init(jax.random.key(1), x)
    variables = jax.tree.map(lambda p: p + 0.1, variables)
    moved = np.abs(module.apply(variables, x) - module.apply(variables, x.at[0, 5, 5, 0].add(1.0)))
    touched = np.argwhere(moved.max(-1)[0] > 1e-6)
    assert len(touched) == 16
    np.testing.assert_array_equal(touched.min(0), (low, low))
    np.testing.assert_array_equal(touched.max(0), (high - 1, high - 1))
