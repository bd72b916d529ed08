"""The gap between two sets of features against sums written out, and the features themselves."""

import json
import math

import jax
import numpy as np
import pytest

from peft_jax import data, models, weights
from peft_jax.report import domain


def test_golden_gaps_of_two_points_each():
  a, b = np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 3.0], [2.0, 5.0]])
  assert domain.linear(a, b) == 4.0
  # Squared distances: 4 within a, 8 within b; 9, 29, 13, 25 across. s^2 = 8: 2 s^2 = 16.
  k = lambda d: math.exp(-d / 16)  # noqa: E731
  expected = k(4) + k(8) - 2 * (k(9) + k(29) + k(13) + k(25)) / 4
  assert domain.rbf(a, b, math.sqrt(8)) == pytest.approx(expected, abs=1e-12)
  median = (3 + math.sqrt(13)) / 2  # of the roots of 4, 8, 9, 13, 25, 29
  assert domain.rbf(a, b) == pytest.approx(domain.rbf(a, b, median), abs=1e-12)


def test_the_gaps_are_the_sums_over_pairs():
  random = np.random.default_rng(0)
  a = random.normal(0, 1, (11, 5)).astype(np.float32)
  b = random.normal(0.7, 1, (7, 5)).astype(np.float32)

  def k(x, y):
    return math.exp(-sum((float(p) - float(q)) ** 2 for p, q in zip(x, y, strict=True)) / 2 / 1.69)

  within = [np.mean([k(x, y) for i, x in enumerate(part) for j, y in enumerate(part) if i != j])
            for part in (a, b)]
  across = np.mean([k(x, y) for x in a for y in b])
  assert domain.rbf(a, b, 1.3) == pytest.approx(sum(within) - 2 * across, abs=1e-10)
  means = [sum(map(np.float64, part)) / len(part) for part in (a, b)]
  assert domain.linear(a, b) == pytest.approx(math.dist(*means), abs=1e-10)
  assert domain.linear(a, a) == 0 and domain.rbf(a, b) > 0.1


def test_the_estimate_is_unbiased():
  """Of two samples of one distribution its mean is 0; the biased one's is about 2 / n."""
  random = np.random.default_rng(0)
  found = [domain.rbf(*random.normal(size=(2, 10, 3)), 1.0) for _ in range(400)]
  assert abs(np.mean(found)) < 3 * np.std(found) / 20 < 0.02 and min(found) < 0


def test_what_the_rbf_kernel_cannot_compare_is_one_sentence():
  with pytest.raises(ValueError, match="2 images or more of each, not 1 and 3"):
    domain.rbf(np.zeros((1, 2)), np.zeros((3, 2)))
  with pytest.raises(ValueError, match="take --kernel=linear"):
    domain.rbf(np.zeros((2, 2)), np.zeros((3, 2)))


def test_features_are_what_the_head_reads_whatever_the_batch(backbone):
  model = models.create("vit_test", num_classes=10)
  params, _ = weights.load(backbone, model, key=jax.random.key(0))
  split = data.open("mini_digits", size=32).split("train800")
  indices = domain.sample(split, 7)
  assert list(indices) == [0, 133, 266, 400, 533, 666, 799]  # 799 / 6 apart
  done = []
  found = domain.features(model, params, split, indices, "inception", 3, done.append)
  images = data.normalize(split.images(indices), "inception")
  head = jax.device_get(params["head"])
  logits = jax.jit(model.apply)({"params": params}, images)
  np.testing.assert_allclose(found @ head["kernel"] + head["bias"], logits, atol=1e-5)
  assert done == [1, 2, 3] and found.dtype == np.float32 and np.std(found, axis=0).min() > 1e-3
  assert list(domain.sample(split, 5000)) == list(range(800))


@pytest.fixture
def result(tmp_path):
  """A function that writes a result.json and returns its path."""

  def write(name, accuracy, task="dtd", model="vit_test", split="test"):
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(
      {"task": task, "model": model, "eval_split": split, f"{split}_accuracy": accuracy}))
    return str(path)

  return write


def test_pairs_set_gaps_beside_gaps_of_accuracy(result):
  pairs = [domain.pair(result("a", 0.75), result("b", 0.5)),
           domain.pair(result("c", 0.5, "svhn"), result("d", 0.625, "svhn"))]
  gaps = {("svhn", "natural"): 2.0, ("dtd", "natural"): 4.0}
  table = domain.table(gaps, "linear", "mini_pretrain", pairs)
  assert table.columns == ("task", "group", "gap", "A %", "B %", "A - B")
  assert table.rows == (("svhn", "natural", 2.0, 50.0, 62.5, -12.5),
                        ("dtd", "natural", 4.0, 75.0, 50.0, 25.0))
  assert domain.by_group(table).rows == (("natural", 2, 3.0, 62.5, 56.25, 6.25),)
  plain = domain.table(gaps, "rbf", "mini_pretrain")
  assert plain.rows[1] == ("dtd", "natural", 4.0) and "Gaussian" in plain.title


def test_pairs_that_do_not_go_together_are_one_sentence(result, tmp_path):
  good = result("a", 0.75)
  for key, value in {"task": "svhn", "model": "vit_b16", "split": "val200"}.items():
    with pytest.raises(ValueError, match=f"{value!r}: a pair is of two methods on the same"):
      domain.pair(good, result("b", 0.5, **{key: value}))
  with pytest.raises(FileNotFoundError, match="There is no .*nope.json; a finished run has"):
    domain.pair(good, str(tmp_path / "nope.json"))
  for text in ("{", "[]", '{"task": "dtd"}', '{"task": 1, "model": 2, "eval_split": "x"}'):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match="bad.json is no result.json of a finished run"):
      domain.pair(good, str(tmp_path / "bad.json"))
