"""Squared gradients against a loop over groups in NumPy, on a tiny model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from peft_jax import data, models
from peft_jax.keys import key
from peft_jax.selection.scores import headless, random_head
from peft_jax.selection.squares import adder, squared_gradients
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
  model = models.ViT(CLASSES, width=8, depth=1, heads=2, patch=4, image_size=SIZE)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
  rng = np.random.default_rng(0)
  params = {path: np.float32("scale" in path) + 0.3 * rng.standard_normal(leaf.shape, np.float32)
            for path, leaf in flat(params).items()}
  paths = tuple(path for path in params if path.startswith(("encoder", "norm")))
  images = rng.integers(0, 256, (N, SIZE, SIZE, 3)).astype(np.uint8)
  labels = rng.integers(0, CLASSES, N)
  return model, nest(params), paths, images, labels


@functools.cache
def gradient(model, seed):
  """(wanted, rest, image, label) -> the gradient of one image's loss."""
  head = 0.02 * jax.random.normal(key(seed, "score head"), (8, CLASSES))

  def loss(wanted, rest, image, label):
    x = data.normalize(image[None], "inception")
    x = model.clone(num_classes=0).apply({"params": nest(rest | wanted)}, x)
    return optax.softmax_cross_entropy_with_integer_labels(x @ head, label[None])[0]

  return jax.jit(jax.grad(loss))


def by_hand(tiny, config, group_size, labels=None):
  """The definition: gradients of single images, and the rest in NumPy and float64."""
  model, params, paths, images, given = tiny
  labels = given if labels is None else labels
  rest = {path: jnp.asarray(leaf) for path, leaf in flat(params).items()}
  wanted = {path: rest.pop(path) for path in paths}
  singles = [gradient(model, config.seed)(wanted, rest, image, label)
             for image, label in zip(images, labels, strict=True)]
  singles = {path: np.array([g[path] for g in singles], np.float64) for path in paths}
  groups = [slice(first, first + group_size) for first in range(0, len(labels), group_size)]
  return {path: sum(np.square(g[group].mean(0)) for group in groups)
          for path, g in singles.items()}


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


@pytest.mark.parametrize("group_size, devices", [
  (1, 1), (4, 2), (5, 8),
  *(pytest.param(size, n, marks=pytest.mark.slow)
    for size, n in [(1, 2), (1, 8), (4, 1), (4, 8), (5, 1), (5, 2), (32, 1), (32, 8)]),
])
def test_they_are_those_of_a_loop_over_groups(tiny, config, group_size, devices):
  """11 images leave a remainder of 4 and of 5; a mean over devices would be squared once."""
  done = []
  found = squares(tiny, config, group_size=group_size, devices=jax.devices()[:devices],
                  show=done.append)
  assert_close(found, by_hand(tiny, config, group_size))
  assert done[-1] == N


def test_the_definitions_differ(tiny, config):
  """What the other tests tell apart: a group's own square, and the square of everything."""
  single, fours, all_ = (by_hand(tiny, config, size) for size in (1, 4, 32))
  path = "encoder/blocks_0/attn/q/kernel"
  assert np.mean(single[path]) > 2 * np.mean(fours[path]) > 2 * np.mean(all_[path])


@pytest.mark.slow
def test_many_images_are_taken_in_several_steps(tiny, config):
  """On two devices 70 images of groups of 8 are 64 and then 6, the last group of 6."""
  model, params, paths, images, labels = tiny
  places = np.arange(70) % N
  many = (model, params, paths, images[places], labels[places])
  asked, done = [], []

  def read(wanted):
    asked.extend(wanted.tolist())
    return many[3][wanted]

  found = squared_gradients(model, params, paths, read, many[4], config, group_size=8,
                            devices=jax.devices()[:2], show=done.append)
  assert asked == list(range(70)) and done == [64, 70]
  assert_close(found, by_hand(many, config, 8))


def test_a_head_of_the_parameters_plays_no_part(tiny, config):
  """Of zeros it would make every gradient zero."""
  model, params, *rest = tiny
  expected = squares(tiny, config, group_size=4)
  zeros = {**params, "head": jax.tree.map(np.zeros_like, params["head"])}
  assert np.abs(params["head"]["kernel"]).max() > 0.1
  found = squares((model, zeros, *rest), config, group_size=4)
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf)


def test_scores_that_are_all_zero_are_refused(config):
  model = models.ViT(CLASSES, width=8, depth=1, heads=2, patch=4, image_size=SIZE, layer_scale=0.0)
  params = model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
  images, labels = np.zeros((2, SIZE, SIZE, 3), np.uint8), np.arange(2)
  with pytest.raises(ValueError, match="^Every score is zero"):
    squares((model, params, ("encoder/blocks_0/attn/q/kernel",), images, labels), config)


def test_no_images_and_no_group_are_refused(tiny, config):
  with pytest.raises(ValueError, match="^11 images in groups of 0 give no scores"):
    squares(tiny, config, group_size=0)
  with pytest.raises(ValueError, match="^0 images in groups of 32 give no scores"):
    squares((*tiny[:4], tiny[4][:0]), config)


@pytest.mark.slow
def test_drawn_labels_are_the_models_own_and_do_not_depend_on_the_groups(tiny, config):
  model, params, _, images, labels = tiny
  body, own = headless(model, params)
  x = body.apply({"params": nest(own)}, data.normalize(images, "inception"))
  logits = x @ random_head(config.seed, 8, CLASSES)
  drawn = np.array([jax.random.categorical(key(config.seed, "score label", place), row)
                    for place, row in enumerate(logits)])
  assert 0 < (drawn != labels).sum() and len(set(drawn.tolist())) > 1
  for group_size, devices in ((1, 1), (4, 8)):
    found = squares(tiny, config, group_size=group_size, drawn=True,
                    devices=jax.devices()[:devices])
    assert_close(found, by_hand(tiny, config, group_size, drawn))


@pytest.mark.slow
def test_stochastic_depth_changes_them_the_same_way_each_time(tiny, config):
  path = "encoder/blocks_0/attn/q/kernel"
  model = tiny[0].clone(depth=2)
  params = {**tiny[1], "encoder": {f"blocks_{i}": tiny[1]["encoder"]["blocks_0"] for i in (0, 1)}}
  score = lambda model=model, config=config, **options: squares(  # noqa: E731
    (model, params, (path,), *tiny[3:]), config, group_size=4, **options)[path]
  plain, one = score(), score(drop_path=0.5)
  assert np.abs(one - plain).max() > 0.1 * plain.max()
  np.testing.assert_array_equal(score(drop_path=0.5), one)
  several = score(drop_path=0.5, devices=jax.devices()[:2])
  np.testing.assert_allclose(several, one, rtol=1e-5, atol=1e-5 * np.mean(one))
  # The rate is the argument's, not the model's own.
  np.testing.assert_array_equal(score(model.clone(drop_path=0.5)), plain)


# --- what they cost --------------------------------------------------------------------------


def count(lowered):
  """(operations, bytes of temporary memory) of a program; a loop's body is counted once."""
  compiled = lowered.compile()
  return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_an_images_share_is_that_of_the_gradient_itself(config):
  model = models.ViT(CLASSES, width=192, depth=1, heads=3, image_size=224)
  like = jax.ShapeDtypeStruct
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
  body, rest = headless(model, params)
  wanted = {path: rest.pop(path) for path in list(rest) if path.startswith(("encoder", "norm"))}
  mesh = Mesh(np.asarray(jax.devices()[:1]), ("groups",), axis_types=(AxisType.Auto,))

  def plain(n):
    def loss(wanted, rest, image, label):
      x = body.apply({"params": nest(rest | wanted)}, data.normalize(image, "inception"))
      logits = x @ random_head(0, x.shape[-1], CLASSES)
      return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    batch = like((n, 224, 224, 3), jnp.uint8), like((n,), jnp.int32)
    return count(jax.jit(jax.grad(loss)).lower(wanted, rest, *batch))

  def squared(groups, size):
    total = {path: like((1, *leaf.shape), jnp.float32) for path, leaf in wanted.items()}
    each = {"label": jnp.int32, "place": jnp.int32, "weight": jnp.float32}
    batch = {name: like((groups, size), dtype) for name, dtype in each.items()}
    batch["image"] = like((groups, size, 224, 224, 3), jnp.uint8)
    return count(adder(body, CLASSES, mesh, config, False).lower(total, wanted, rest, batch))

  operations, _ = plain(32)
  assert operations < squared(1, 32)[0] < 1.05 * operations
  operations, memory = plain(1)
  two, eight = squared(2, 1), squared(8, 1)
  assert operations < eight[0] < 1.05 * operations  # of one image: eight times the same body
  # Neither activations nor gradients of several images are held, only the images themselves.
  assert eight[1] < 1.02 * two[1] and eight[1] < 2 * memory
