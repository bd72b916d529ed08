"""What is chosen by scores: the reference's golden examples, and NumPy as the oracle."""

import jax
import numpy as np
import pytest

from peft_jax.selection import top

# Of a linear layer, rows are neurons: [fan_out, fan_in].
LINEAR = np.array([[0.1, -0.5, 0.3, 0.2], [0, 0.2, -0.1, -0.4], [-0.7, 0.6, 0.65, 0]], np.float32)


def test_a_linear_layer():
  np.testing.assert_array_equal(top.top_per_neuron(LINEAR.T, 1), [[1, 3, 0]])
  two = np.asarray(top.top_per_neuron(LINEAR.T, 2))
  assert [set(column) for column in two.T] == [{1, 2}, {1, 3}, {0, 2}]


def test_convolutions_count_all_taps_of_all_inputs():
  out_in = np.array([[[[0.1, -0.2]], [[0.3, 0.0]]], [[[-0.9, 0.8]], [[0.2, 0.1]]]], np.float32)
  kernel = out_in.transpose(2, 3, 1, 0)  # [1, 2, in, out]; flat input = tap * 2 + channel
  chosen = np.asarray(top.top_per_neuron(kernel.reshape(4, 2), 2))
  place = lambda channel, tap: tap * 2 + channel  # noqa: E731
  np.testing.assert_array_equal(chosen[0], [place(1, 0), place(0, 0)])
  np.testing.assert_array_equal(chosen[1], [place(0, 1), place(0, 1)])
  depthwise = np.array([[[0.1, 0.4], [-0.5, 0.2]], [[-0.3, 0.2], [0.1, 0]]], np.float32)
  chosen = np.asarray(top.top_per_neuron(depthwise.reshape(2, 4).T, 2))
  np.testing.assert_array_equal(chosen, [[2, 0], [1, 1]])  # (1, 0) then (0, 1); (0, 0) then (0, 1)


@pytest.mark.parametrize("fan_in, fan_out, k", [(1, 1, 1), (7, 3, 2), (5, 9, 5), (4, 6, 9)])
@pytest.mark.parametrize("ties", [False, True])
def test_per_neuron_against_a_stable_sort(fan_in, fan_out, k, ties):
  rng = np.random.default_rng(fan_in + fan_out + k)
  scores = rng.standard_normal((fan_in, fan_out)).astype(np.float32)
  if ties:
    scores = np.sign(scores) * np.round(np.abs(scores))
  scores[:, 0] = 0  # a neuron without any gradient still has its k lowest inputs chosen
  expected = np.argsort(-np.abs(scores), axis=0, kind="stable")[: min(k, fan_in)]
  chosen = top.top_per_neuron(scores, k)
  assert chosen.dtype == np.int32
  np.testing.assert_array_equal(chosen, expected)
  np.testing.assert_array_equal(top.top_per_neuron(-3 * scores, k), expected)


def test_a_k_below_one_is_refused():
  with pytest.raises(ValueError, match="^k=0 inputs"):
    top.top_per_neuron(LINEAR, 0)


@pytest.mark.parametrize("n", [0, 1, 10, 37, 40, 99])
def test_the_net_and_its_layers_against_a_stable_sort(n):
  rng = np.random.default_rng(n)
  scores = {name: np.round(3 * rng.standard_normal(shape)).astype(np.float32)
            for name, shape in {"a": (3, 5), "b": (1, 4), "c": (7, 3)}.items()}
  every = np.concatenate([np.abs(leaf).ravel() for leaf in scores.values()])
  expected = set(np.argsort(-every, kind="stable")[:n].tolist())
  found, start = set(), 0
  chosen = top.top_of_net(scores, n)
  for name, leaf in scores.items():
    places = chosen.get(name, np.zeros(0, np.int32))
    assert (np.diff(places) > 0).all() and name not in chosen or len(places)
    found |= {start + int(place) for place in places}
    start += leaf.size
  assert found == expected and len(found) == min(n, 40)
  layer = top.top_of_net({"c": scores["c"]}, n).get("c", np.zeros(0, np.int32))
  order = np.argsort(-np.abs(scores["c"]).ravel(), kind="stable")[:n]
  np.testing.assert_array_equal(layer, np.sort(order))


def test_random_inputs_are_distinct_and_cover_all():
  scores = 1 + jax.random.uniform(jax.random.key(0), (6, 500))  # as GPS draws them
  chosen = np.asarray(top.top_per_neuron(scores, 3))
  assert all(len(set(column)) == 3 for column in chosen.T)
  shares = np.bincount(chosen.ravel(), minlength=6) / 500
  assert abs(shares - 0.5).max() < 0.1  # 3 of 6, give or take four deviations


@pytest.mark.parametrize("whole", [top.top_channels, top.top_matrices])
def test_whole_units_of_nothing_and_of_everything(whole):
  rng = np.random.default_rng(0)
  scores = {name: rng.standard_normal(shape).astype(np.float32)
            for name, shape in {"a": (3, 5), "b": (1, 4), "c": (7, 3)}.items()}
  assert whole(scores, 0) == {}
  for n in (40, 1000):
    found = whole(scores, n)
    for name, leaf in scores.items():
      np.testing.assert_array_equal(found[name], np.arange(leaf.size))
  sizes = [sum(map(len, whole(scores, n).values())) for n in range(41)]
  assert sizes == sorted(sizes) and all(size <= n for n, size in enumerate(sizes))
  assert len(set(sizes)) == (13 if whole is top.top_channels else 4)  # one more unit at a time
