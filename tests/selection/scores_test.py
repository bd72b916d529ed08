"""The contrastive loss against the reference's golden values, and the sums of its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import data, models
from peft_jax.keys import key
from peft_jax.selection import scores
from peft_jax.train import config as config_lib
from peft_jax.train import shard
from peft_jax.tree import flat, nest

TWO = [(1, 0), (0, 1), (0.6, 0.8), (-0.8, 0.6)]
THREE = [(1, 0), (0, 1), (0.8, 0.6), (0.6, 0.8), (-0.8, 0.6), (-0.6, 0.8)]


@pytest.mark.parametrize("features, labels, temperature, expected", [
  (TWO, [0, 1], 0.5, 0.66804020),
  (TWO, [0, 0], 0.5, 1.46804020),
  (TWO, [0, 1], 0.07, 1.45659324),
  (TWO, [0, 0], 0.07, 7.17087896),
  (THREE, [0, 1, 0], 0.5, 1.81565682),
  (THREE, [0, 1, 0], 0.07, 7.04246463),
  (THREE, [0, 1, 2], 0.5, 1.86899015),
  (THREE, [0, 0, 0], 0.07, 8.64246463),
])
def test_golden_losses(features, labels, temperature, expected):
  features, labels = jnp.array(features, jnp.float32), jnp.array(labels * 2)
  loss = scores.contrastive_loss(features, labels, temperature)
  np.testing.assert_allclose(loss, expected, rtol=2e-6)


def test_golden_gradient_which_leaves_the_lengths_alone():
  gradient = jax.grad(scores.contrastive_loss)(
    jnp.array(THREE, jnp.float32), jnp.array([0, 1, 0] * 2), 0.5
  )
  expected = [(0, -0.113696), (0.553938, 0), (0.039375, -0.0525),
              (-0.032336, 0.024252), (-0.139021, -0.185361), (-0.368909, -0.276682)]
  np.testing.assert_allclose(gradient, expected, atol=2e-6)
  longer = 3 * jnp.array(THREE, jnp.float32)
  np.testing.assert_allclose(scores.contrastive_loss(longer, jnp.array([0, 1, 0] * 2), 0.5),
                             1.81565682, rtol=2e-6)


def backbone():
  model = models.ViT(4, width=8, depth=1, heads=2, patch=4, image_size=8)
  params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  move = lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)  # noqa: E731
  return model, jax.tree.map(move, params)


def batches(step):
  images = np.random.default_rng(step).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
  return {"image": images, "label": np.arange(6, dtype=np.int32) % 4}


def settings():
  config = config_lib.default().unlock()
  config.data.normalize = "inception"
  return config


@pytest.mark.slow
@pytest.mark.parametrize("drop_path", [0.4])
def test_one_view_after_the_other_gives_the_gradient_of_both_together(drop_path):
  """The oracle keeps both views: one program, one gradient."""
  model, params = backbone()
  config, paths = settings(), ("encoder/blocks_0/attn/q/kernel", "patch_embed/kernel")
  trunk = model.clone(num_classes=0, drop_path=drop_path, depth=2)
  params = dict(params) | {"encoder": {f"blocks_{i}": params["encoder"]["blocks_0"]
                                       for i in range(2)}}
  rest = {path: leaf for path, leaf in flat(params).items() if not path.startswith("head")}
  wanted = {path: rest.pop(path) for path in paths}

  @jax.jit
  @jax.grad
  def gradient(wanted, views, labels, step):
    def features(i):
      rngs = {"dropout": key(0, f"score view {i} drop path", step)}
      images = data.normalize(views[i], "inception")
      return trunk.apply({"params": nest(rest | wanted)}, images, train=True, rngs=rngs)

    both = jnp.concatenate([features(0), features(1)])
    return scores.contrastive_loss(both, jnp.concatenate([labels] * 2), 0.5)

  expected = []
  for step in range(2):
    views = [data.augment(batches(step)["image"], key(0, f"score view {i}", step), "contrast")
             for i in range(2)]
    expected.append(gradient(wanted, views, batches(step)["label"], step))
  found = scores.gradient_sums(model.clone(depth=2), params, paths, batches, 2, config, "contrast",
                               0.5, drop_path=drop_path)
  for path in paths:
    total = expected[0][path] + expected[1][path]
    largest = float(jnp.max(jnp.abs(total)))
    assert largest > 1e-5
    np.testing.assert_allclose(found[path], total, atol=1e-5 * largest)


def test_the_cross_entropy_does_not_depend_on_the_split_into_batches():
  model, params = backbone()
  images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)
  labels = np.arange(16, dtype=np.int32) % 4
  paths = ("encoder/blocks_0/mlp/fc1/kernel", "patch_embed/kernel")

  def mean(size):
    part = lambda i: slice(i * size, (i + 1) * size)  # noqa: E731
    batches = lambda i: {"image": images[part(i)], "label": labels[part(i)]}  # noqa: E731
    found = scores.gradient_sums(model, params, paths, batches, 16 // size, settings(),
                                 "cross_entropy")
    return {path: leaf * (size / 16) for path, leaf in found.items()}

  halves, whole = mean(8), mean(16)
  for path in paths:
    largest = float(jnp.max(jnp.abs(whole[path])))
    assert largest > 1e-5
    np.testing.assert_allclose(halves[path], whole[path], atol=1e-5 * largest)


@pytest.mark.slow
def test_any_number_of_devices_gives_the_same_sums_and_compiles_once(caplog):
  model, params = backbone()
  images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)
  batch = {"image": images, "label": np.arange(16, dtype=np.int32) % 4}
  path, sums = "patch_embed/kernel", []
  for count in (1, 2, 8):
    how = shard.parallel("jit", jax.devices()[:count])
    own, parts = how.place(params), jax.device_put(batch, how.split)
    caplog.clear()
    with jax.log_compiles(), caplog.at_level("WARNING"):
      found = scores.gradient_sums(model, own, (path,), lambda _, parts=parts: parts, 2,
                                   settings(), "contrast", 0.5)
    for program in ("first_view", "second_view"):
      assert sum(f"Compiling jit({program})" in line for line in caplog.messages) == 1
    sums.append(np.asarray(found[path]))
  largest = np.abs(sums[0]).max()
  assert largest > 1e-5
  for other in sums[1:]:
    np.testing.assert_allclose(other, sums[0], atol=1e-5 * largest)


@pytest.mark.parametrize("loss", ["contrast", "cross_entropy"])
def test_gradients_of_batches_are_added_with_their_signs(loss):
  model, params = backbone()
  config = settings()
  paths = ("encoder/blocks_0/attn/q/kernel", "patch_embed/kernel")
  seen = []
  run = lambda steps, later=0: scores.gradient_sums(  # noqa: E731
    model, params, paths, lambda step: batches(step + later), steps, config, loss, 0.5, seen.append
  )
  both, first = run(2), run(1)
  assert seen == [1, 2, 1] and set(both) == set(paths)
  own = flat(params)
  for path in paths:
    assert both[path].shape == own[path].shape and both[path].dtype == jnp.float32
    assert float(jnp.max(jnp.abs(first[path]))) > 1e-4
    rest = both[path] - first[path]
    assert float(jnp.max(jnp.abs(rest))) > 1e-4
    # Absolute values would only ever grow.
    assert bool((jnp.abs(both[path]) < jnp.abs(first[path])).any())


def test_views_of_the_contrastive_loss_differ_and_are_functions_of_seed_and_step():
  images = batches(0)["image"]
  one, two = (data.augment(images, jax.random.key(i), "contrast") for i in range(2))
  assert one.dtype == jnp.uint8 and one.shape == images.shape
  assert (np.asarray(one) != np.asarray(two)).mean() > 0.5
  np.testing.assert_array_equal(one, data.augment(images, jax.random.key(0), "contrast"))
