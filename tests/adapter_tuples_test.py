"""Every method and ordered tuple of methods through an adapter file, on one backbone each."""

import jax
import numpy as np
import pytest

import peft_jax
from peft_jax import adapter_file, methods, models, weights
from peft_jax.count import count
from peft_jax.partition import fixed, join
from peft_jax.sites import sites
from peft_jax.tree import flat
from peft_jax.tuned import Tuned

BACKBONES = {
  "vit_test": {},
  "swin_test": {"depths": (1, 1), "image_size": 28},
  "convnext_test": {"widths": (4, 6), "depths": (1, 1), "image_size": 32},
}
TUPLES = [
  *((name,) for name in methods.METHODS if name not in ("mlp", "spt")),  # mlp: tests of its own
  ("ssf", "lora"), ("lora", "ssf"), ("san", "lora"), ("ssf", "adapter"), ("lora", "adaptformer"),
  ("ia3", "lora", "norm"), ("vpt", "dora", "bias"),
  ("spt", "vpt"),  # chosen for the ViT
]
CHOSEN = {
  "chosen": ("encoder/blocks_0/attn/q/kernel=3", "encoder/blocks_1/mlp/norm/bias=2"),
  "whole": ("norm/scale",),
}
OPTIONS = {"lora": {"rank": 1}, "dora": {"rank": 1}, "vpt": {"length": 2}, "spt": CHOSEN}


@pytest.mark.parametrize(
  "names, backbone",
  [(names, list(BACKBONES)[i % 3]) for i, names in enumerate(TUPLES)],
  ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_what_was_trained_comes_back_bit_by_bit(tmp_path, names, backbone):
  model = models.create(backbone, num_classes=3, **BACKBONES[backbone])
  own = tuple(methods.METHODS[name](**OPTIONS.get(name, {})) for name in names)
  tuned = Tuned(model, own, sites(model, models.images(model)))
  draw = np.random.default_rng(0).standard_normal

  def drawn(tree):
    whole = lambda leaf: np.issubdtype(leaf.dtype, np.integer)  # noqa: E731
    return jax.tree.map(
      lambda leaf: np.ones(leaf.shape, np.int32) if whole(leaf) else draw(leaf.shape, np.float32),
      tree,
    )

  params, variables = drawn(tuned.shapes["params"]), drawn(tuned.shapes)
  train, frozen = tuned.split(variables)
  train = join(train, fixed(frozen))
  adapter_file.save(
    tmp_path / "a", train, tuned=tuned, model=backbone, task="folder", class_names=("a", "b", "c"),
    base=weights.Base("random", "random", "", weights.fingerprint(params)), seed=0,
    resize="bilinear_pil", normalize="imagenet", key=jax.random.key(0),
  )
  loaded = peft_jax.load(tmp_path / "a", params)
  assert loaded.tuned == tuned and count(loaded.tuned) == count(tuned)
  expected = {**flat({"params": params}), **flat(train)}
  found = flat(loaded.variables)
  assert found.keys() == expected.keys() == flat(variables).keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=path)
  trained = {path for path in flat(train) if path.startswith("params/")}
  assert not any(np.array_equal(expected[p], flat({"params": params})[p]) for p in trained)
