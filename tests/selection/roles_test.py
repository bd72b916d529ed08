"""What SPT may choose from on every kind of backbone, against lists written by hand."""

import importlib.util
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from peft_jax import models
from peft_jax.selection.roles import roles
from peft_jax.sites import sites
from peft_jax.tree import flat

path = pathlib.Path(__file__).parents[1] / "methods" / "layers.py"
spec = importlib.util.spec_from_file_location("layers", path)
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)


def of(name, **options):
  """(roles, {leaf path: size} of all parameters) of a model of 5 classes."""
  model = models.create(name, num_classes=5, **options)
  images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  found = roles(sites(model, images))
  sizes = {path: leaf.size for path, leaf in flat(params).items()}
  assert set(found) < set(sizes)
  return found, sizes


def by_role(found, role, short=lambda path: re.sub(r"_\d+", "", path)):
  return {short(path) for path in found if found[path] == role}


def left_out(found, sizes):
  return set(sizes) - set(found)


def test_of_a_vit_the_candidates_of_the_released_code():
  _, params, table = layers.by_shapes("vit_base_patch16_224")
  found = roles(table)
  sizes = {path: leaf.size for path, leaf in flat(params).items()}
  assert sum(sizes[path] for path in found) == 85_056_000
  vectors = [path for path in found if found[path] == "vector"]
  assert sum(sizes[path] for path in vectors) == 121_344 and len(vectors) == 12 * 10 + 2
  matrices = [path for path in found if found[path] == "matrix"]
  assert matrices[:7] == [f"encoder/blocks_0/{layer}/kernel" for layer in (
    "attn/q", "attn/k", "attn/v", "attn/proj", "mlp/fc1", "mlp/fc2")] + [
    "encoder/blocks_1/attn/q/kernel"]
  assert len(matrices) == 72 and len(found) == len(matrices) + len(vectors)
  assert list(found)[:3] == ["encoder/blocks_0/attn/norm/scale", "encoder/blocks_0/attn/norm/bias",
                             "encoder/blocks_0/attn/q/kernel"]
  assert list(found)[-2:] == ["norm/scale", "norm/bias"]
  assert left_out(found, sizes) == {"cls_token", "pos_embed", "patch_embed/kernel",
                                    "patch_embed/bias", "head/kernel", "head/bias"}


@pytest.mark.parametrize("options, more", [
  ({"layer_scale": 0.1, "registers": 2, "no_embed_class": True}, {"reg_tokens"}),
  ({"distilled": True}, {"dist_token", "head_dist/kernel", "head_dist/bias"}),
  ({"norm_pre": True}, {"norm_pre/scale", "norm_pre/bias"}),
  ({"pool": "avg"}, set()),
  ({"pre_logits": True}, {"pre_logits/kernel", "pre_logits/bias"}),
], ids=["layer_scale", "distilled", "norm_pre", "avg", "pre_logits"])
def test_of_the_other_vits(options, more):
  found, sizes = of("vit_test", **options)
  outside = {path for path in sizes if not path.startswith(("encoder/", "norm/", "fc_norm/"))}
  assert left_out(found, sizes) == outside and more < outside
  assert len(by_role(found, "matrix", str)) == 12 and not by_role(found, "entries")
  assert ("encoder/blocks_1/mlp/ls" in found) == ("layer_scale" in options)
  assert ("fc_norm/bias" in found) == (options.get("pool") == "avg")
  assert found["encoder/blocks_0/attn/q/bias"] == "vector"


def test_of_a_swin():
  found, sizes = of("swin_test")
  block = "stages/blocks"
  assert by_role(found, "matrix") == {f"{block}/{layer}/kernel" for layer in (
    "attn/q", "attn/k", "attn/v", "attn/proj", "mlp/fc1", "mlp/fc2")}
  assert by_role(found, "entries") == {f"{block}/attn/rel_pos",
                                       "stages/downsample/reduction/kernel"}
  assert by_role(found, "vector") == {
    *(f"{block}/{layer}/bias" for layer in (
      "attn/q", "attn/k", "attn/v", "attn/proj", "mlp/fc1", "mlp/fc2")),
    *(f"{place}norm/{name}" for name in ("scale", "bias")
      for place in (f"{block}/attn/", f"{block}/mlp/", "stages/downsample/", ""))}
  assert {path.partition("/")[0] for path in left_out(found, sizes)} == {"patch_embed", "head"}


@pytest.mark.parametrize("options, scales", [
  ({}, {"gamma"}), ({"layer_scale": None, "grn": True}, {"grn/scale", "grn/bias"}),
], ids=["version_1", "version_2"])
def test_of_a_convnext(options, scales):
  found, sizes = of("convnext_test", **options)
  block = "stages/blocks"
  assert by_role(found, "matrix") == {f"{block}/fc1/kernel", f"{block}/fc2/kernel"}
  assert by_role(found, "entries") == {f"{block}/dwconv/kernel", "stages/downsample/conv/kernel"}
  assert by_role(found, "vector") == {
    *(f"{block}/{name}" for name in ("dwconv/bias", "norm/scale", "norm/bias", "fc1/bias",
                                     "fc2/bias", *scales)),
    *(f"stages/downsample/{name}" for name in ("norm/scale", "norm/bias", "conv/bias")),
    "norm/scale", "norm/bias"}
  assert {path.partition("/")[0] for path in left_out(found, sizes)} == {"stem", "head"}


def test_a_head_of_several_layers_is_left_out():
  found, _ = of("vit_test", head_layers=3)
  assert found == of("vit_test")[0]


def test_what_cannot_be_told_is_refused():
  with pytest.raises(ValueError, match=r"a scan holds all at 'encoder/blocks/attn.*loop='python'"):
    of("vit_test", loop="scan")
  table = sites(nn.Dense(3), jnp.ones((1, 2)))
  with pytest.raises(ValueError, match="a ConvNeXt of peft_jax.models, and 'kernel' is none"):
    roles(table)
