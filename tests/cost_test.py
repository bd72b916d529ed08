"""A frozen weight costs no weight gradient, no optimizer state and is not returned.

The limits are those of benchmarks/step_cost.py for ViT-B/16, held here at a quarter of its width
(and of LoRA's rank), where the products still dominate. Nothing is allocated.
"""

import importlib.util
import pathlib

import jax
import pytest

from peft_jax import models
from peft_jax.methods import LoRA

path = pathlib.Path(__file__).parents[1] / "benchmarks" / "step_cost.py"
spec = importlib.util.spec_from_file_location("step_cost", path)
step_cost = importlib.util.module_from_spec(spec)
spec.loader.exec_module(step_cost)

BATCH = 2
NARROW = {
  "lora": LoRA(sites=step_cost.LAYERS, rank=2),
  "lora_shared": LoRA(sites=step_cost.LAYERS, rank=2, share=("q", "k", "v")),
}


@pytest.fixture(scope="module")
def model():
  return models.create("vit_b16", num_classes=10, width=192, heads=3, depth=4)


@pytest.fixture(scope="module")
def forward(model):
  return step_cost.forward_operations(model, BATCH)


def measure(model, forward, name):
  with jax.numpy_dtype_promotion("standard"):  # optax divides by an integer step
    return step_cost.cost(model, BATCH, name, forward, NARROW.get(name))


def test_the_count_sees_products(model, forward):
  """F is the products' share plus a little; full fine-tuning pays for weight gradients."""
  tokens = BATCH * (1 + 14 * 14)
  products = 4 * (2 * tokens * 12 * 192**2 + BATCH * 4 * 197**2 * 192) + 2 * tokens * 768 * 192
  assert products < forward < 1.1 * products
  full = measure(model, forward, "full")
  assert full.ratio > 2.8
  assert not full.failures()
  assert full.optimizer > 2 * 4 * full.trained


@pytest.mark.parametrize("name", list(step_cost.LIMITS))
def test_frozen_weights_cost_nothing(model, forward, name):
  cost = measure(model, forward, name)
  assert not cost.failures()
  assert cost.ratio > 1.9  # the gradient does reach the patch embedding or the first block
  params = step_cost.shapes(model, BATCH)[0]
  assert 4 * cost.trained < 0.02 * step_cost.size(params)
  kernels = [leaf for leaf in jax.tree.leaves(params["encoder"]) if leaf.ndim == 2]
  assert cost.largest_output < min(map(step_cost.size, kernels))


def test_linear_probing_costs_a_forward_pass(model, forward):
  cost = measure(model, forward, "linear")
  assert cost.ratio < 1.01
  assert not cost.failures()
