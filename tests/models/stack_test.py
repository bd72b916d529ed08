"""Stacking and unstacking trees that hold numbered blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax.models import stack_blocks, unstack_blocks


def tree(n=3):
  return {
    "stem": {"scale": jnp.arange(2.0)},
    "encoder": {f"blocks_{i}": {"attn": {"q": {"a": jnp.full((4, 2), i), "index": jnp.array([i])}}}
                for i in range(n)},
  }


def test_stacked_trees_have_the_blocks_axis_first():
  stacked = stack_blocks(tree())
  assert jax.tree.map(jnp.shape, stacked) == {
    "stem": {"scale": (2,)},
    "encoder": {"blocks": {"attn": {"q": {"a": (3, 4, 2), "index": (3, 1)}}}},
  }
  np.testing.assert_array_equal(stacked["encoder"]["blocks"]["attn"]["q"]["index"][:, 0], [0, 1, 2])


@pytest.mark.parametrize("n", [1, 3, 12])
def test_unstacking_is_the_inverse(n):
  back = unstack_blocks(stack_blocks(tree(n)))
  assert jax.tree.structure(back) == jax.tree.structure(tree(n))
  jax.tree.map(np.testing.assert_array_equal, back, tree(n))


def test_a_tree_without_blocks_stays():
  assert stack_blocks({"head": {"bias": 1}}) == unstack_blocks({"head": {"bias": 1}})


def test_numpy_stays_numpy():
  stacked = stack_blocks({"blocks_0": np.zeros(2, np.int8), "blocks_1": np.ones(2, np.int8)})
  assert isinstance(stacked["blocks"], np.ndarray) and stacked["blocks"].dtype == np.int8


@pytest.mark.parametrize("blocks, sentence", [
  ({"blocks_0": {"a": np.zeros(2)}, "blocks_2": {"a": np.zeros(2)}}, r"blocks \[0, 2\]"),
  ({"blocks_1": {"a": np.zeros(2)}}, r"blocks \[1\]"),
  ({"blocks_0": {"a": np.zeros(2)}, "blocks_1": {"a": np.zeros(3)}}, "differ in a"),
  ({"blocks_0": {"a": np.zeros(2)}, "blocks_1": {"b": np.zeros(2)}}, "differ in a"),
])
def test_unlike_blocks_are_refused(blocks, sentence):
  with pytest.raises(ValueError, match=sentence):
    stack_blocks({"encoder": blocks})


def test_uneven_stacks_are_refused():
  with pytest.raises(ValueError, match=r"\[2, 3\]"):
    unstack_blocks({"blocks": {"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}})
