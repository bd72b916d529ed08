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


@pytest.mark.parametrize("layer", layers.UNGROUPED.values(), ids=layers.UNGROUPED)
def test_forms_agree(layer):
  layers.assert_forms_agree(LoRA(rank=2, alpha=3.0, sites="layer"), layer)


@pytest.mark.parametrize("layer", layers.UNGROUPED.values(), ids=layers.UNGROUPED)
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
    (LoRA(rank=16, sites=QKV, share=("q", "k", "v")), 589_824),
    (LoRA(rank=8, sites=QKV), 442_368),
    (LoRA(rank=8), 1_339_392),
    # Rank 2 in the first two blocks instead of 8, and 3 at k of block 5.
    (LoRA(sites=QKV, rank_pattern=("blocks_[01]/.*=2", "blocks_5/attn/k=3")),
     442_368 - 2 * 3 * 6 * 1536 - 5 * 1536),
  ],
  ids=["shared", "shared 16", "qkv", "all", "patterns"],
)
def test_counts_on_vit_b16(method, count):
  assert sum(layers.trained(method).values()) == count


@pytest.mark.slow
def test_count_on_swin_b():
  method = LoRA(rank=8, sites=QKV, share=("q", "k", "v"))
  assert sum(layers.trained(method, "swin_base_patch4_window7_224").values()) == 385_024


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
    ({"initial": "pissa"}, "LoRA: initial='pissa'; it must be one of .*'gaussian'"),
    ({"rank_pattern": ("fc1",)}, "LoRA: rank_pattern has 'fc1', which is not of the form regex="),
    ({"rank_pattern": ("fc1=2.5",)}, "rank_pattern has 'fc1=2.5', which is not"),
    ({"rank_pattern": ("fc1=0",)}, "rank_pattern has 'fc1=0', which is not"),
    ({"rank_pattern": ("fc(=2",)}, r"rank_pattern has 'fc\(=2', which is not"),
    ({"alpha_pattern": ("fc1=nan",)}, "alpha_pattern has 'fc1=nan', which is not"),
    ({"alpha_pattern": "fc1=2"}, r"alpha_pattern='fc1=2' is no tuple, such as \('fc1=4',\)"),
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
  sibling = dict(sites=QKV, share=("q", "k", "v"))
  with pytest.raises(ValueError, match="attn/q to .*attn/k, but rank_pattern gives .* 8 and 2"):
    Tuned(model, (LoRA(rank_pattern=("k=2",), **sibling),), table)
  for field in ("rank_pattern", "alpha_pattern"):
    for pattern in ("fc1=2", "blocks/attn/q=2", "ttn/q=2"):
      message = f"LoRA: {field} has '{pattern}', which matches the end of none of the 36 selected"
      with pytest.raises(ValueError, match=message):
        Tuned(model, (LoRA(sites=QKV, **{field: (pattern,)}),), table)


def test_patterns_are_those_of_hf_peft():
  """The first entry that matches the end of a path, from the start of a name on."""
  method = LoRA(rank=4, alpha=6.0, rank_pattern=("attn/q=2", "q=3", "fc.=5"),
                alpha_pattern=("q|fc2=1.5",))
  at = lambda path: (method.rank_at(path), method.scale_at(path))  # noqa: E731
  assert at("encoder/blocks_0/attn/q") == (2, 0.75)
  assert at("q") == (3, 0.5)
  assert at("attn/sq") == (4, 1.5)
  assert at("attn/q/norm") == (4, 1.5)
  assert at("mlp/fc1") == (5, 1.2)
  assert at("mlp/fc2") == (5, 0.3)


def test_rank_stabilised_scale():
  tuned, variables, x = layers.attach(
    LoRA(rank=4, alpha=3.0, rslora=True, sites="layer"), *layers.LAYERS["dense"])
  v = {name: np.asarray(leaf) for name, leaf in variables["lora"]["layer"].items()}
  plain = np.asarray(variables["params"]["layer"]["kernel"])
  merged = tuned.merge(variables)["layer"]["kernel"]
  np.testing.assert_allclose(merged, plain + 1.5 * v["a"] @ v["b"], rtol=1e-5, atol=1e-5)


def test_ranks_of_their_own_act_and_merge():
  method = LoRA(rank=1, rank_pattern=("layer=3",), alpha_pattern=("layer=6",))
  make, shape, inputs = layers.LAYERS["dense"]
  tuned, variables, x = layers.attach(method, make, shape, inputs)
  assert variables["lora"]["layer"]["a"].shape == (6, 3)
  assert variables["lora"]["before"]["b"].shape == (1, 6)
  layers.assert_forms_agree(method, (make, shape, inputs))
  v = {name: np.asarray(leaf) for name, leaf in variables["lora"]["layer"].items()}
  change = tuned.merge(variables)["layer"]["kernel"] - variables["params"]["layer"]["kernel"]
  np.testing.assert_allclose(change, 2 * v["a"] @ v["b"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "initial, a, b", [("gaussian", 0.02, 0), ("trunc_normal_both", 0.02, 0.02)])
def test_other_initial_values(initial, a, b):
  tuned, _, _ = layers.attach(
    LoRA(rank=50, sites="layer", initial=initial),
    lambda name: layers.nn.Dense(60, name=name), (1, 100), 1)
  made = tuned.init(jax.random.key(0))["lora"]["layer"]
  for leaf, std in ((made["a"], a), (made["b"], b)):
    assert abs(float(jnp.std(leaf)) - std) < 0.03 * std + 1e-9
    assert abs(float(jnp.mean(leaf))) < 0.05 * std + 1e-9
    assert float(jnp.max(jnp.abs(leaf))) >= 3 * std  # normal, not uniform
  if b:
    assert abs(float(jnp.corrcoef(made["a"][:60].ravel(), made["b"].T.ravel())[0, 1])) < 0.06


def test_a_gaussian_has_deviation_one_over_rank():
  tuned, _, _ = layers.attach(
    LoRA(rank=4, sites="layer", initial="gaussian"),
    lambda name: layers.nn.Dense(8, name=name), (1, 4000), 1)
  a = tuned.init(jax.random.key(0))["lora"]["layer"]["a"]
  assert abs(float(jnp.std(a)) - 0.25) < 0.01
