"""Requests that used to be accepted and silently did something else."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from peft_jax import data, models
from peft_jax.methods import METHODS, SAN, SSF, Linear, LoRA, Wire
from peft_jax.sites import NoSiteError, sites
from peft_jax.train import config as config_lib
from peft_jax.tuned import Tuned

Q, K = "encoder/blocks_0/attn/q", "encoder/blocks_0/attn/k"


@pytest.fixture(scope="module")
def vit():
  model = models.create("vit_test", num_classes=3)
  return model, sites(model, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))


@pytest.mark.parametrize(
  "method, sentence",
  [
    (lambda: SAN(wiring=(Wire(Q, ("patch_embed",), recal="qq"),)), "names 'qq', which `sites`"),
    (lambda: SAN(wiring=(Wire(Q, ("patch_embed",), before="no"),)), "names 'no', which `sites`"),
    (lambda: SAN(wiring=(Wire(Q, ("norm",)),)), "names 'norm', which `sites`"),
    (lambda: SAN(wiring=("x",)), "is not of the form"),
    (lambda: LoRA(rank=2, share=("query", "key")), "names none of the selected layers"),
    (lambda: LoRA(rank=2, share=("fc1", "fc2")), "a layer with other inputs"),
  ],
)
def test_options_that_select_nothing(vit, method, sentence):
  with pytest.raises(ValueError, match=sentence):
    Tuned(vit[0], (method(),), vit[1])


def test_a_head_that_is_not_there_would_stay_untrained(vit):
  tuned = Tuned(vit[0], (Linear(),), vit[1], head="classifier")
  with pytest.raises(NoSiteError, match="head='classifier' names no module"):
    tuned.split({"params": {"head": {"kernel": jnp.zeros((2, 2))}}})


class Plain(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.LayerNorm(use_scale=False, name="norm")(x)


def test_a_norm_without_scale_takes_ssf_but_not_its_merge():
  model, x = Plain(), jnp.arange(8.0).reshape(2, 4)
  tuned = Tuned(model, (SSF(),), sites(model, x), head="")
  params = model.init(jax.random.key(0), x)["params"]
  variables = {"params": params, **tuned.init(jax.random.key(1), params)}
  assert not jnp.allclose(tuned.apply(variables, x), model.apply({"params": params}, x))
  with pytest.raises(ValueError, match="'scale'.* from nothing"):
    tuned.merge(variables)


class StackedLast(nn.Module):
  @nn.compact
  def __call__(self, x):
    scan = nn.scan(
      lambda layer, x, _: (layer(x), None), variable_axes={True: 1}, split_rngs={True: True},
      length=3,
    )
    return scan(nn.Dense(4, name="dense"), x, None)[0]


def test_a_scan_that_stacks_elsewhere_than_on_axis_0():
  with pytest.raises(NoSiteError, match="not stacked on axis 0"):
    sites(StackedLast(), jax.ShapeDtypeStruct((2, 4), jnp.float32))


@pytest.mark.parametrize("key", ["head_lr", "warmup_lr", "eps", "group_lr.san"])
def test_negative_rates(key):
  config = config_lib.default().unlock()
  config.model.name, config.weights = "vit_test", "random"
  config.update_from_flattened_dict({f"optim.{key}": -0.1})
  with pytest.raises(ValueError, match=f"optim.{key}=-0.1 is too small"):
    config_lib.resolve(config)


def test_scopes_have_no_rate_of_their_own():
  scopes = {name for name, method in METHODS.items() if not method.collection}
  assert {"full", "linear", "bias", "norm"} <= scopes
  assert set(config_lib.default().optim.group_lr) == set(METHODS) - scopes | {"backbone"}


def test_a_seed_of_more_than_31_bits_orders_alike_in_and_outside_a_program():
  inside = jax.jit(lambda step: data.order(3_000_000_000, step, 2, 8))(jnp.int32(1))
  assert (inside == data.order(3_000_000_000, 1, 2, 8)).all()
