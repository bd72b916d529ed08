"""The table of a tuned model names everything that is trained, and counts it."""

import jax
import jax.numpy as jnp
import pytest

from peft_jax import explain, models
from peft_jax.methods import SAN, Adapter, Bias, Full, Linear, LoRA
from peft_jax.sites import sites
from peft_jax.tree import flat
from peft_jax.tuned import Tuned


def tuned(*methods, loop="python"):
  model = models.create("vit_test", num_classes=5, loop=loop)
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  return Tuned(model, methods, sites(model, images))


def count(value):
  shapes = jax.eval_shape(value.model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  params = shapes["params"]
  made = jax.eval_shape(value.init, jax.random.key(0), params)
  train, _ = value.split({"params": params, **made})
  return sum(leaf.size for leaf in flat(train).values())


METHODS = [LoRA(rank=2), SAN(), Adapter(width=2), Full(), Bias(), Linear()]


@pytest.mark.parametrize("loop", ["python", "scan"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_rows_count_what_is_trained(method, loop):
  value = tuned(method, loop=loop)
  assert sum(row.count for row in explain.rows(value)) == count(value) > 0


def test_rows_of_two_methods_at_one_site():
  rows = {row.site: row for row in explain.rows(tuned(LoRA(rank=2, sites=".*/q"), Bias()))}
  assert rows["encoder/blocks_1/attn/q"] == (
    "encoder/blocks_1/attn/q",
    "Dense",
    "(34, 24) -> (34, 24)",
    ("lora.a (24, 2)", "lora.b (2, 24)", "params.bias (24,)"),
    24 * 2 + 2 * 24 + 24,
  )
  assert rows["head"].trained == ("params.kernel (24, 5)", "params.bias (5,)")
  assert "encoder/blocks_0/attn" not in rows


def test_table_is_what_print_shows_aligned_with_a_total():
  value = tuned(Linear())
  assert str(value) == explain.table(value)
  assert explain.table(value).splitlines() == [
    "site              kind   x -> y             trained                                  count",
    "head              Dense  (2, 24) -> (2, 5)  params.kernel (24, 5), params.bias (5,)    125",
    "total of 1 sites                                                                       125",
  ]
  every = explain.table(value, every=True)
  assert "encoder/blocks_0/attn/q" in every and "(the model)" in every
  assert len({len(line) for line in every.splitlines()}) == 1
