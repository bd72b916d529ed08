"""Scopes: which of the backbone's own parameters are trained."""

import importlib.util
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from peft_jax import models
from peft_jax.methods import METHODS, SSF, Bias, Full, Linear, LoRA, Norm, Partial, build
from peft_jax.sites import sites
from peft_jax.tree import flat
from peft_jax.tuned import Tuned

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)


def swin_block(c, heads):
  """Numbers of a block of width c with windows of 7: norms, qkv, projection, MLP, table."""
  return 4 * c + 3 * (c * c + c) + c * c + c + 2 * 4 * c * c + 4 * c + c + 13 * 13 * heads


# VPT's numbers; those of Swin's Partial-k are sums over its definition.
TWO = 2 * swin_block(1024, 32) + 2 * 1024
COUNTS = {
  "vit_b16": [
    (Full(), 85_798_656), (Linear(), 0), (Norm(), 38_400), (Bias(), 102_912),
    (Bias(norms=False), 83_712), (Bias(rel_pos=True), 102_912),
    (Partial(), 7_089_408), (Partial(k=2), 14_177_280), (Partial(k=4), 28_353_024),
  ],
  "swin_b": [
    (Full(), 86_743_224), (Norm(), 57_600), (Bias(), 137_216), (Bias(rel_pos=True), 200_760),
    (Partial(), TWO - swin_block(1024, 32)), (Partial(k=2), TWO),
    (Partial(k=4), TWO + 2 * 2048 + 2048 * 1024 + 2 * swin_block(512, 16)),
  ],
  "convnext_b": [
    (Full(), 87_566_464), (Norm(), 40_192), (Bias(), 129_280 + 1024), (Partial(), 8_450_048),
  ],
}


LARGE = {
  "vit_l16": [(Full(), 303_301_632), (Bias(), 272_384), (Partial(), 12_598_272)],
  "vit_h14": [(Full(), 630_764_800), (Bias(), 453_120), (Partial(), 19_680_000)],
}


@pytest.mark.parametrize(
  "name", [*COUNTS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_counts(name):
  for method, count in (COUNTS | LARGE)[name]:
    sizes = layers.trained(method, name)
    assert all(path.startswith("params/") for path in sizes)
    assert sum(sizes.values()) == count, method


def chosen(model, method):
  """Paths of the backbone that are trained; the head's are left out."""
  table, params = sites(model, models.images(model)), models.parameters(model)
  labels = flat(Tuned(model, (method,), table).labels({"params": params}))
  assert {p for p, label in labels.items() if label == "head"} == {
    "params/head/kernel", "params/head/bias"}
  return {path.removeprefix("params/") for path, label in labels.items() if label == "backbone"}


def inside(model, *modules):
  """All paths of parameters in these modules."""
  found = {path for path in flat(models.parameters(model)) if path.startswith(modules)}
  assert found
  return found


VIT = models.ViT(3, 8, 12, 2, 8, 16, pool="avg", layer_scale=0.1, registers=2)
SWIN = models.Swin(3, 4, (2, 2, 2), (1, 2, 2), 3, image_size=16)
CONVNEXT = models.ConvNeXt(3, (4, 6), (2, 2), image_size=16)
PARTIAL = {
  "vit-1": (VIT, 1, ("encoder/blocks_11/", "fc_norm/")),
  "vit-2": (VIT, 2, ("encoder/blocks_10/", "encoder/blocks_11/", "fc_norm/")),
  "vit-12": (VIT, 12, ("encoder/", "fc_norm/")),
  "pre_logits": (
    models.ViT(3, 8, 2, 2, 8, 16, pre_logits=True), 1, ("encoder/blocks_1/", "norm/", "pre_logits/")
  ),
  "remat": (VIT.clone(loop="remat"), 2, ("encoder/blocks_10/", "encoder/blocks_11/", "fc_norm/")),
  "swin-1": (SWIN, 1, ("stages_2/blocks_1/", "norm/")),
  "swin-2": (SWIN, 2, ("stages_2/blocks_", "norm/")),
  "swin-3": (SWIN, 3, ("stages_1/blocks_1/", "stages_2/", "norm/")),
  "swin-4": (SWIN, 4, ("stages_1/blocks_", "stages_2/", "norm/")),
  "swin-6": (SWIN, 6, ("stages_", "norm/")),
  "convnext-1": (CONVNEXT, 1, ("stages_1/blocks_1/", "norm/")),
  "convnext-3": (CONVNEXT, 3, ("stages_0/blocks_1/", "stages_1/", "norm/")),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_partial_trains_what_runs_from_the_kth_last_block_on(name):
  model, k, modules = PARTIAL[name]
  assert chosen(model, Partial(k=k)) == inside(model, *modules)


@pytest.mark.parametrize(
  "model, k, sentence",
  [
    (VIT, 0, r"Partial\(k=0\): the model has 12 modules named blocks_0, blocks_1, ...; k counts"),
    (VIT, 13, r"Partial\(k=13\): the model has 12 modules"),
    (VIT.clone(loop="scan"), 1, "holds all blocks at one path, such as 'encoder/blocks.*', where"),
    (VIT.clone(loop="scan_remat"), 1, "take loop='python' or 'remat'"),
  ],
)
def test_partial_needs_blocks_of_their_own(model, k, sentence):
  with pytest.raises(ValueError, match=sentence):
    chosen(model, Partial(k=k))
  with pytest.raises(ValueError, match="has 0 modules named blocks_0"):
    Partial().trains(sites(Mixed(), jnp.ones((1, 4))), frozenset())


def test_options_of_bias():
  plain, table = chosen(SWIN, Bias()), chosen(SWIN, Bias(rel_pos=True))
  assert plain == {p for p in flat(models.parameters(SWIN)) if p.endswith("/bias")} - {"head/bias"}
  assert table - plain == {
    f"stages_{s}/blocks_{i}/attn/rel_pos" for s in range(3) for i in range(2)}
  assert plain < table
  gone = plain - chosen(SWIN, Bias(norms=False))
  assert {path.split("/")[-2] for path in gone} == {"norm"} and "norm/bias" in gone
  assert {path.split("/")[-2] for path in plain - gone} == {
    "proj", "q", "k", "v", "fc1", "fc2"}  # a Swin's patches are patch_embed/proj


class Mixed(nn.Module):
  """Norms under any name; one parameter of the model itself; a head with a norm in it."""

  @nn.compact
  def __call__(self, x):
    x = x + self.param("bias", nn.initializers.zeros, (1, 4))
    x = nn.LayerNorm(name="layers_1")(nn.Dense(4, name="normal")(x))
    x = nn.RMSNorm(name="rms")(x)
    return Head(name="head")(x)


class Head(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(2, name="fc")(nn.LayerNorm(name="norm")(x))


HEAD = {
  "params/head/norm/scale", "params/head/norm/bias", "params/head/fc/kernel", "params/head/fc/bias"
}
TRAINED = {
  "linear": set(),
  "bias": {"params/bias", "params/normal/bias", "params/layers_1/bias"},
  "norm": {"params/layers_1/scale", "params/layers_1/bias", "params/rms/scale"},
}


@pytest.mark.parametrize("name", TRAINED)
def test_norms_are_found_by_type_and_the_head_is_always_trained(name):
  x = jnp.ones((1, 4))
  tuned = Tuned(Mixed(), (METHODS[name](),), sites(Mixed(), x))
  variables = {"params": Mixed().init(jax.random.key(0), x)["params"]}
  labels = flat(tuned.labels(variables))
  assert {path for path, label in labels.items() if label == "head"} == HEAD
  assert {path for path, label in labels.items() if label == "backbone"} == TRAINED[name]
  assert tuned.init(jax.random.key(0)) == {}
  merged = tuned.merge(variables)
  assert jax.tree.structure(merged) == jax.tree.structure(variables["params"])


def test_scopes_add_up_with_methods():
  x = jnp.ones((1, 4))
  tuned = Tuned(Mixed(), (Norm(), Bias(), SSF(sites="normal")), sites(Mixed(), x))
  params = Mixed().init(jax.random.key(0), x)["params"]
  train, _ = tuned.split({"params": params, **tuned.init(jax.random.key(0))})
  expected = HEAD | TRAINED["bias"] | TRAINED["norm"] | {"ssf/normal/scale", "ssf/normal/shift"}
  assert set(flat(train)) == expected


class Config(dict):
  """What `build` needs of a ConfigDict."""

  methods = ()


def test_build_follows_the_config():
  config = Config(lora={"rank": 4, "sites": ".*/q"}, ssf={})
  config.methods = ("ssf", "lora", "norm")
  assert build(config) == (SSF(), LoRA(rank=4, sites=".*/q"), Norm())
  config.methods = ("lorra",)
  with pytest.raises(ValueError, match="no method 'lorra', only lora, .*; did you mean 'lora'"):
    build(config)
