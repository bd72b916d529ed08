"""Scoring keeps one view's activations at a time; the counts are XLA's, nothing is allocated.

The limits are those of benchmarks/scoring_cost.py for ViT-B/16, held here on a narrow one.
"""

import importlib.util
import pathlib

import jax
import pytest

from peft_jax import models

path = pathlib.Path(__file__).parents[2] / "benchmarks" / "scoring_cost.py"
spec = importlib.util.spec_from_file_location("scoring_cost", path)
scoring_cost = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scoring_cost)

BATCH = 4
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def costs():
  """{name: Cost} of the contrastive scores and what they are held to."""
  model = models.create("vit_b16", num_classes=10, width=192, heads=3, depth=2, image_size=112)
  programs = {
    "score": scoring_cost.gps(model, BATCH, "contrast"),
    "views": scoring_cost.plain(model, 2 * BATCH),
    "view": scoring_cost.plain(model, BATCH),
  }
  with jax.numpy_dtype_promotion("standard"):  # optax divides by an integer step
    programs["full"] = scoring_cost.full(model, BATCH)
    return {name: scoring_cost.cost(parts) for name, parts in programs.items()}


def test_a_third_of_a_view_is_computed_twice_and_no_more(costs):
  ratio = costs["score"].operations / costs["views"].operations
  assert 7 / 6 < ratio < scoring_cost.OPERATIONS  # 7 F of 6 F, and the views themselves


def test_one_view_is_in_memory_at_a_time(costs):
  assert costs["score"].peak < 1.1 * costs["view"].peak
  assert costs["views"].peak > 1.2 * costs["view"].peak  # both would show
  assert costs["score"].peak < scoring_cost.MEMORY * costs["full"].peak
