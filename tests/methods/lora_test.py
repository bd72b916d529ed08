"""LoRA: forms, counts, start, sharing, dropout, options."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax.methods import LoRA
from peft_jax.tuned import Tuned

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

QKV = r".*/attn/(q|k|v)"


@pytest.mark.parametrize("layer", layers.LAYERS.values(), ids=layers.LAYERS)
def test_forms_agree(layer):
  layers.assert_forms_agree(LoRA(rank=2, alpha=3.0, sites="layer"), layer)


@pytest.mark.parametrize("layer", layers.LAYERS.values(), ids=layers.LAYERS)
def test_the_start_is_the_backbone_bit_for_bit(layer):
  tuned, variables, x = layers.attach(LoRA(rank=2, sites="layer"), *layer)
  variables |= tuned.init(jax.random.key(3), variables["params"])
  assert float(jnp.max(jnp.abs(variables["lora"]["layer"]["a"]))) > 0
  base = tuned.model.apply({"params": variables["params"]}, x)
  np.testing.assert_array_equal(tuned.apply(variables, x), base)


def test_the_formula():
  """x = [1, -1], W = [[1, 2], [3, 4]], b = [1, 0], A = [2, 1], B = [3, -1], alpha 4, rank 1."""
  tuned, variables, _ = layers.attach(
    LoRA(rank=1, alpha=4.0, sites="layer"), lambda name: layers.nn.Dense(2, name=name), (1, 2), 1
  )
  variables["params"]["layer"] = layers.tree(kernel=[[1, 2], [3, 4]], bias=[1, 0])
  variables["lora"] = layers.tree(layer__a=[[2], [1]], layer__b=[[3, -1]])
  # x W + b = [-1, -2]; x A = 1; 4 * 1 * B = [12, -4]
  np.testing.assert_array_equal(tuned.apply(variables, jnp.asarray([[1.0, -1.0]])), [[11, -6]])
  merged = tuned.merge(variables)["layer"]
  np.testing.assert_array_equal(merged["kernel"], [[25, -6], [15, 0]])
  np.testing.assert_array_equal(merged["bias"], [1, 0])


@pytest.mark.parametrize(
  "method, count",
  [
    (LoRA(rank=8, sites=QKV, share=("q", "k", "v")), 294_912),
    (LoRA(rank=8, sites=QKV), 442_368),
    (LoRA(rank=8), 1_339_392),
  ],
  ids=["shared", "qkv", "all"],
)
def test_counts_on_vit_b16(method, count):
  assert sum(layers.trained(method).values()) == count


def test_shared_sites_read_one_a():
  method = LoRA(rank=8, sites=QKV, share=("q", "k", "v"))
  made = {p for p in layers.trained(method) if "/blocks_3/" in p}
  at = "lora/encoder/blocks_3/attn"
  assert made == {f"{at}/q/a", f"{at}/q/b", f"{at}/k/b", f"{at}/v/b"}


def test_initial_values_are_those_of_hf_peft():
  tuned, variables, _ = layers.attach(
    LoRA(rank=50, sites="layer"), lambda name: layers.nn.Dense(60, name=name), (1, 100), 1
  )
  made = tuned.init(jax.random.key(0))["lora"]["layer"]
  assert made["a"].shape == (100, 50) and made["b"].shape == (50, 60)
  bound = 0.1  # 1 / sqrt(100)
  assert 0.098 < float(jnp.max(jnp.abs(made["a"]))) <= bound
  assert abs(float(jnp.std(made["a"])) - bound / 3**0.5) < 0.002
  assert not jnp.any(made["b"])


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_dropout_acts_on_the_low_rank_path_alone(name):
  """Where B is zero there is nothing on that path to drop; elsewhere the mean is kept."""
  method = LoRA(rank=2, sites="layer", dropout=0.5)
  tuned, variables, x = layers.attach(method, *layers.LAYERS[name])
  start = {**variables, **tuned.init(jax.random.key(3))}
  base = tuned.model.apply({"params": variables["params"]}, x)
  rngs = {"tuning": jax.random.key(0)}
  np.testing.assert_allclose(tuned.apply(start, x, rngs=rngs), base, rtol=1e-6, atol=1e-6)
  quiet = tuned.apply(variables, x)
  draw = lambda key: tuned.apply(variables, x, rngs={"tuning": key})  # noqa: E731
  draws = jax.vmap(draw)(jax.random.split(jax.random.key(1), 4000))
  assert float(jnp.max(jnp.abs(draws[0] - quiet))) > 0.1
  error = jnp.std(draws, axis=0) / 4000**0.5
  assert float(jnp.max(jnp.abs(jnp.mean(draws, axis=0) - quiet) / (error + 1e-6))) < 5


@pytest.mark.parametrize(
  "options, message",
  [
    ({"rank": 0}, "LoRA: rank=0; it must be at least 1"),
    ({"dropout": 1.0}, r"LoRA: dropout=1.0; it must lie in \[0, 1\)"),
    ({"dropout": -0.1}, "LoRA: dropout=-0.1"),
  ],
)
def test_invalid_options(options, message):
  with pytest.raises(ValueError, match=message):
    LoRA(**options)


def test_options_that_do_not_fit_the_model():
  model, _, table = layers.by_shapes("vit_base_patch16_224")
  with pytest.raises(ValueError, match=r"LoRA: rank=769 at patch_embed, whose .* at most 768"):
    Tuned(model, (LoRA(rank=769),), table)
  with pytest.raises(ValueError, match="ties .*attn/q to .*attn/k, which `sites` does not select"):
    Tuned(model, (LoRA(sites=".*/(q|v)", share=("q", "k", "v")),), table)
