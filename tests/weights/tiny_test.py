"""The tiny pretrained backbones that come with peft_jax."""

import re

import jax
import numpy as np
import pytest

from peft_jax import data, models, weights
from peft_jax.weights import npz, tiny

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", tiny.FILES)
def test_the_file_is_compact_and_holds_the_model(name):
  stored = np.load(tiny.FILES[name])
  assert {stored[path].dtype for path in stored} == {np.dtype("float16")}
  model = models.create(name, num_classes=7)
  params, base = weights.load(name, model, key=KEY)
  assert models.preset(name).weights == name == base.name and base.sha256 == npz.sha256(base.source)
  assert base.resized == base.skipped == ()
  wanted = models.parameters(model)
  assert jax.tree.map(lambda a: a.shape, params) == jax.tree.map(lambda a: a.shape, wanted)
  assert sum(a.size for a in jax.tree.leaves(params)) - params["head"]["kernel"].size - 7 == sum(
    stored[path].size for path in stored
  )


def test_another_size_and_another_number_of_heads():
  model = models.create("tiny_vit", num_classes=0, image_size=48)
  assert weights.load("tiny_vit", model, key=KEY)[1].resized == (
    "pos_embed: 8 x 8 to 6 x 6, bicubic_aa",
  )
  with pytest.raises(ValueError, match="tiny_vit: the file has 4 attention heads, the model 8"):
    weights.load("tiny_vit", models.create("tiny_vit", num_classes=0, heads=8), key=KEY)
  with pytest.raises(ValueError, match="missing from the file: .*unknown to the model"):
    weights.load("tiny_convnext", models.create("tiny_vit", num_classes=0), key=KEY)


@pytest.mark.parametrize("name", tiny.FILES)
def test_features_know_more_of_an_unseen_task_than_those_of_random_weights(name):
  """By the nearest class mean, 400 images of mini_texture for the means and 200 others."""
  task = data.open("mini_texture", size=64)
  splits = {split: task.split(split) for split in ("train800", "val200")}
  known, others = splits["train800"].images(range(400)), splits["val200"].images(range(200))
  labels, truth = splits["train800"].labels[:400], splits["val200"].labels
  model = models.create(name, num_classes=0)

  def accuracy(spec):
    params = weights.load(spec, model, key=KEY)[0]
    forward = jax.jit(lambda x: model.apply({"params": params}, data.normalize(x, "imagenet")))
    x, y = (np.concatenate([forward(half) for half in np.split(a, 2)]) for a in (known, others[:]))
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, y = (x - mean) / deviation, (y - mean) / deviation
    means = np.stack([x[labels == label].mean(0) for label in range(task.num_classes)])
    distance = ((y[:, None] - means[None]) ** 2).sum(-1)
    return 100 * (distance.argmin(1) == truth).mean()

  assert accuracy(name) > accuracy("random") + 10


def test_names_of_weights_are_listed_where_a_spec_is_wrong():
  model = models.create("tiny_vit", num_classes=0)
  listed = "'random', 'dinov2_vits14', 'tiny_vit', 'tiny_swin', 'tiny_convnext'"
  with pytest.raises(ValueError, match=re.escape(listed)):
    weights.load("tiny_vitt", model, key=KEY)
