"""Scopes: which of the backbone's own parameters are trained."""

import importlib.util
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from peft_jax.methods import METHODS, SSF, Bias, Full, Linear, LoRA, Norm, build
from peft_jax.sites import sites
from peft_jax.tree import flat
from peft_jax.tuned import Tuned

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)


@pytest.mark.parametrize(
  "method, count",
  [(Full(), 85_798_656), (Linear(), 0), (Bias(), 102_912), (Norm(), 38_400)],
  ids=["full", "linear", "bias", "norm"],
)
def test_counts_on_vit_b16(method, count):
  sizes = layers.trained(method)
  assert all(path.startswith("params/") for path in sizes)
  assert sum(sizes.values()) == count


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
