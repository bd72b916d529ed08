"""A frozen weight costs no weight gradient, no optimizer state and is not returned.

The limits are those of benchmarks/step_cost.py for ViT-B/16, held here at a quarter of its width
(and of LoRA's rank), where the products still dominate. Nothing is allocated.
"""

import dataclasses
import importlib.util
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from peft_jax import models
from peft_jax.methods import GPS, LoRA
from peft_jax.sites import sites
from peft_jax.tuned import Tuned, join

path = pathlib.Path(__file__).parents[1] / "benchmarks" / "step_cost.py"
spec = importlib.util.spec_from_file_location("step_cost", path)
step_cost = importlib.util.module_from_spec(spec)
spec.loader.exec_module(step_cost)

BATCH = 2
NARROW = {
  "lora": LoRA(sites=step_cost.LAYERS, rank=2),
  "lora_shared": LoRA(sites=step_cost.LAYERS, rank=2, share=("q", "k", "v")),
  "gps_k5": GPS(k=2, form="entries"),
  "gps_k15": GPS(k=4, form="entries"),
  "entries_400k": GPS(level="net", form="entries", biases=False, chosen=(
    ".*/(q|k|v|proj)=174", ".*/fc[12]=694")),
}
SLOW = ("gps_k5", "entries_400k")


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


@pytest.mark.parametrize("name", [
  pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in step_cost.LIMITS])
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


@pytest.fixture(scope="module")
def masked(model, forward):
  return measure(model, forward, "gps_mask")


@pytest.mark.parametrize("name", ["gps", *(
  pytest.param(name, marks=pytest.mark.slow) for name in step_cost.MEMORY if name != "gps")])
def test_no_copy_of_a_written_kernel_is_kept(model, forward, masked, name):
  """In a sparse form a step keeps what the mask form keeps: one copy of each would be seen."""
  cost = measure(model, forward, name)
  assert not cost.failures() and not step_cost.copied([masked, cost])
  # Less room than the limits leave, as kernels are small beside what a narrow model computes.
  blocks = step_cost.size(step_cost.shapes(model, BATCH)[0]["encoder"])
  assert cost.temporary < masked.temporary + 0.5 * blocks
  assert masked.ratio > 2.8 and masked.optimizer > 2 * blocks


@pytest.mark.parametrize("method", [
  GPS(k=5, form="entries"), GPS(k=5, form="product"), GPS(form="kernel"),
  GPS(level="net", form="entries", chosen=("layers_0=1200",)),
], ids=lambda method: f"{method.level}-{method.form}")
def test_passes_of_loops_are_counted_as_if_written_out(method, monkeypatch):
  model = nn.Sequential([nn.Dense(480)])
  x = jax.ShapeDtypeStruct((8, 200, 64), jnp.float32)
  method = dataclasses.replace(method, sites="layers_0")
  tuned = Tuned(model, (method,), sites(model, x), head="")
  train, frozen = tuned.split(tuned.shapes)

  def counted():
    def step(train, frozen, x, dy):  # a new function, so that it is traced anew
      y, back = jax.vjp(lambda train, x: tuned.apply(join(train, frozen), x), train, x)
      return y, back(dy)

    y = jax.ShapeDtypeStruct((8, 200, 480), jnp.float32)
    return jax.jit(step).lower(train, frozen, x, y).compile().cost_analysis()["flops"]

  def scan(function, carry, rows):
    for i in range(len(rows[0])):
      carry, _ = function(carry, [row[i] for row in rows])
    return carry, None

  in_loops = counted()
  monkeypatch.setattr(jax.lax, "map", lambda f, rows: jnp.stack([f(row) for row in rows]))
  monkeypatch.setattr(jax.lax, "scan", scan)
  left_out = counted() - in_loops
  expected = step_cost.loops(tuned)
  assert (expected > 0) == (method.form != "kernel")
  assert left_out == pytest.approx(expected, rel=0.1)
