"""Headers of selections on real backbones, with counts as a test wants them."""

import math

import numpy as np
import pytest

from peft_jax import models
from peft_jax.report.selection import Selection
from peft_jax.selection import file as selection_file
from peft_jax.tree import flat


@pytest.fixture(scope="session")
def shapes():
  """A function of a backbone's name: {leaf path: shape} of what SPT chooses from."""

  def of(name):
    model = models.create(name, num_classes=0)
    leaves = flat(models.parameters(model)).items()
    return {path: list(leaf.shape) for path, leaf in leaves
            if not path.startswith(("patch_embed", "stem", "cls_token", "pos_embed"))}

  return of


@pytest.fixture(scope="session")
def selection(shapes):
  """A function that makes a Selection of `share` of every leaf's entries, drawn from `seed`."""

  def make(name="vit_test", task="mini_digits", seed=0, share=0.1, base="a" * 64, **header):
    random = np.random.default_rng([seed, *task.encode()])
    places = {}
    for path, shape in shapes(name).items():
      size = math.prod(shape)
      n = random.binomial(size, share)
      places[path] = np.sort(random.permutation(size)[:n]).astype(np.int32)
    header = {
      "format": selection_file.FORMAT, "method": {"method": "spt"}, "model": name,
      "methods": [{"method": "spt"}],
      "base_name": "some.npz", "base": base, "data": "d" * 64, "task": task, "split": "train800",
      "seed": seed, "batch_size": 32, "image_size": 32, "shapes": shapes(name),
      "counts": {path: rows.size for path, rows in places.items()}, **header,
    }  # fmt: skip
    return Selection(f"{task} s{seed}", places, header)

  return make


@pytest.fixture
def files(tmp_path):
  """A function of Selections that writes them and returns the paths."""

  def write(*selections):
    paths = []
    for i, one in enumerate(selections):
      paths.append(tmp_path / f"{i}.safetensors")
      selection_file.save(paths[-1], one.places, one.header)
    return paths

  return write
