"""Counts, percentages and ratios, against the figures that papers print."""

import math

import pytest

from peft_jax import count, models
from peft_jax.methods import Bias, Full, Linear, LoRA
from peft_jax.models.shapes import images
from peft_jax.sites import sites
from peft_jax.tuned import Tuned

B16 = 85_798_656
VTAB = (100, 102, 47, 102, 37, 10, 397, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9)
FGVC = (200, 555, 102, 120, 196)


def counts(trained, classes, backbone=0):
  """What `count` gives on ViT-B/16 for so many trained numbers beside a head of `classes`."""
  head = 769 * classes
  return {
    "trained": trained + head, "head": head, "backbone": backbone, "backbone_without_head": B16
  }


def counted(method, classes):
  model = models.create("vit_b16", num_classes=classes)
  return count.count(Tuned(model, (method,), sites(model, images(model))))


def test_percentages_of_a_real_model():
  found = counted(LoRA(rank=16, share=("q", "k", "v"), sites=".*/(q|k|v)"), 47)
  assert found["lora"] == 589_824 and found["head"] == 769 * 47
  assert count.percentages(found) == pytest.approx({
    "without_head": 100 * 589_824 / B16,
    "with_head": 100 * (589_824 + 36_143) / B16,
    "of_model": 100 * (589_824 + 36_143) / (B16 + 589_824 + 36_143),
  })
  assert found["percent"] == count.percentages(found)["with_head"]
  bias = count.percentages(counted(Bias(), 47))  # a part of the backbone is not added to it
  assert bias["of_model"] == pytest.approx(100 * (102_912 + 36_143) / (B16 + 36_143))


@pytest.mark.parametrize("prompts, classes, total, tuned, percent", [
  (100, 6, 86_724_870, 926_214, 1.0680),
  (100, 10, 86_727_946, 929_290, 1.0715),
  (5, 397, 86_150_029, 351_373, 0.4079),
])
def test_percent_of_the_model_is_what_vpts_code_prints(prompts, classes, total, tuned, percent):
  found = counts(9216 * prompts, classes)
  assert found["trained"] == tuned and B16 + tuned == total
  assert count.percentages(found)["of_model"] == pytest.approx(percent, abs=1e-4)


PUBLISHED = {  # trained beside the head on every task: "total params" over the 24 tasks
  "full": (B16, 24.02), "linear": (0, 1.02), "bias": (102_912, 1.05), "partial-1": (7_089_408, 3.00)
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_ratio_is_what_vpt_and_spt_print(name):
  trained, ratio = PUBLISHED[name]
  own = trained if name in ("full", "bias", "partial-1") else 0
  tasks = [counts(trained, classes, own) for classes in VTAB + FGVC]
  assert count.total_ratio(tasks) == pytest.approx(ratio, abs=0.005)


def test_total_ratio_of_counted_models():
  full, linear = ([counted(method, 9), counted(method, 9)] for method in (Full(), Linear()))
  assert count.total_ratio(full) == pytest.approx(2 + 2 * 769 * 9 / B16)
  assert count.total_ratio(linear) == pytest.approx(1 + 2 * 769 * 9 / B16)


@pytest.mark.parametrize("score, trained, value", [
  (0.8802, 100_000, 0.876), (0.854, 28_340_000, 0.476), (0.7170, 2_380_000, 0.654), (0.5, 0, 0.5)
])
def test_ppt_is_what_v_petl_bench_prints(score, trained, value):
  assert count.ppt(score, counts(trained, 9)) == pytest.approx(value, abs=5e-4)
  with pytest.raises(ValueError, match="score=88.0; it is a fraction"):
    count.ppt(88.0, counts(trained, 9))
  assert math.isclose(count.ppt(score, counts(trained, 9)), count.ppt(score, counts(trained, 555)))
