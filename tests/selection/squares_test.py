"""Squared gradients against a loop over groups in NumPy, on a tiny model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from peft_jax import data, models
from peft_jax.keys import key
from peft_jax.selection import scores
from peft_jax.selection.squares import adder, grouped, squared_gradients
from peft_jax.sites import sites
from peft_jax.train import config as config_lib
from peft_jax.tree import flat, nest

N, CLASSES, SIZE = 11, 3, 8


@pytest.fixture(scope="module")
def config():
  config = config_lib.default().unlock()
  config.seed = 3
  config.data.normalize = "inception"
  return config


@pytest.fixture(scope="module")
def tiny():
  """(model, its parameters, paths of the candidates, images, labels)."""
  model = models.ViT(CLASSES, width=8, depth=2, heads=2, patch=4, image_size=SIZE)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
  rng = np.random.default_rng(0)
  params = {path: np.float32("scale" in path) + 0.3 * rng.standard_normal(leaf.shape, np.float32)
            for path, leaf in flat(params).items()}
  paths = tuple(path for path in params if path.startswith(("encoder", "norm")))
  images = rng.integers(0, 256, (N, SIZE, SIZE, 3)).astype(np.uint8)
  labels = rng.integers(0, CLASSES, N)
  return model, nest(params), paths, images, labels


def by_hand(tiny, config, group_size, labels=None):
  """The definition, group by group, in float64 sums."""
  model, params, paths, images, given = tiny
  labels = given if labels is None else labels
  body = model.clone(num_classes=0)
  own = {path: jnp.asarray(leaf) for path, leaf in flat(params).items()}
  head = 0.02 * jax.random.normal(key(config.seed, "score head"), (8, CLASSES))

  def loss(wanted, image, label):
    x = body.apply({"params": nest(own | wanted)}, data.normalize(image, config.data.normalize))
    return optax.softmax_cross_entropy_with_integer_labels(x @ head, label).mean()

  gradient = jax.jit(jax.grad(loss))
  total = {path: np.zeros(own[path].shape) for path in paths}
  for first in range(0, N, group_size):
    g = gradient({path: own[path] for path in paths}, images[first : first + group_size],
                 labels[first : first + group_size])
    for path in paths:
      total[path] += np.square(np.asarray(g[path], np.float64))
  return total


def squares(tiny, config, **options):
  model, params, paths, images, labels = tiny
  options = {"devices": jax.devices()[:1], **options}
  return squared_gradients(model, params, paths, lambda places: images[places], labels, config,
                           **options)


def assert_close(found, expected, rtol=1e-5):
  assert set(found) == set(expected)
  for path, leaf in expected.items():
    if path.endswith("attn/k/bias"):  # a constant added to all keys moves no softmax
      q = expected[path.replace("/k/", "/q/")]
      assert np.max(found[path]) < 1e-8 * np.max(q)
      continue
    assert np.max(leaf) > 0
    assert found[path].dtype == np.float32 and found[path].shape == leaf.shape
    np.testing.assert_allclose(found[path], leaf, rtol=rtol, atol=rtol * np.mean(leaf))


@pytest.mark.parametrize("group_size", [1, 4, 5, 32])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_they_are_those_of_a_loop_over_groups(tiny, config, group_size, devices):
  found = squares(tiny, config, group_size=group_size, devices=jax.devices()[:devices])
  assert_close(found, by_hand(tiny, config, group_size))
