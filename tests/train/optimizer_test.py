"""The update rules: against NumPy in double precision, and against torch where it is installed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models, partition
from peft_jax.methods import Bias, LoRA
from peft_jax.sites import sites
from peft_jax.train import config as config_lib
from peft_jax.train import step as steps
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned

IMAGES = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
STEPS, PER_EPOCH = 6, 2
RATES = {"head": 3e-2, "lora": 1e-2, "backbone": 2e-3}  # at the top of the schedule
CASES = pytest.mark.parametrize(
  "name, where, momentum",
  [
    ("adamw", "matrices", 0.9),
    ("adam", "matrices", 0.9),
    ("sgd", "matrices", 0.9),
    ("sgd", "all", 0.0),
    ("adam", "all", 0.9),
  ],
)


def tune():
  """A head of two layers, LoRA at q, and all biases: three groups, matrices and vectors."""
  model = models.ViT(5, width=12, depth=1, heads=3, patch=8, image_size=16, head_layers=2)
  return Tuned(model, (LoRA(rank=2, sites=".*/q"), Bias()), sites(model, IMAGES))


def run(name, where, momentum):
  """(start, gradients of each step, rates of each step, end) of the library's optimizer."""
  optim = config_lib.default().unlock().optim
  optim.name, optim.decay, optim.momentum = name, where, momentum
  optim.weight_decay, optim.eps, optim.warmup_lr, optim.epochs = 0.3, 1e-3, 1e-3, 8
  optim.warmup_epochs = 1
  optim.head_lr, optim.group_lr.lora, optim.lr = RATES["head"], RATES["lora"], RATES["backbone"]
  tuned, draw = tune(), np.random.default_rng(0)
  shapes = flat(tuned.split(tuned.shapes)[0])
  drawn = lambda: {p: draw.standard_normal(s.shape, np.float32) for p, s in shapes.items()}  # noqa: E731
  start, gradients = drawn(), [drawn() for _ in range(STEPS)]
  labels = flat(tuned.labels(nest(start)))
  by_group = steps.rates_of(optim, set(labels.values()), PER_EPOCH)
  rates = [{p: float(by_group[g](i)) for p, g in labels.items()} for i in range(STEPS)]
  tx = steps.optimizer(tuned, nest(start), optim, PER_EPOCH)

  @jax.jit
  def update(train, state, gradient):
    with jax.numpy_dtype_promotion("standard"):
      updates, state = tx.update(gradient, state, train)
    return jax.tree.map(jnp.add, train, updates), state

  train, state = nest(start), tx.init(nest(start))
  for gradient in gradients:
    train, state = update(train, state, nest(gradient))
  return start, gradients, rates, flat(jax.device_get(train))


def decay_at(where, path):
  if where == "all":
    return 0.0 if path == "params/head/out/bias" else 0.3
  return 0.3 if path.endswith(("kernel", "/a", "/b")) else 0.0


def assert_same(end, expected, start):
  assert end.keys() == expected.keys()
  for path, value in expected.items():
    assert np.abs(end[path] - start[path]).max() > 1e-3, path
    np.testing.assert_allclose(end[path], value, rtol=2e-5, atol=2e-6, err_msg=path)


def in_numpy(name, momentum, w, gradients, rates, decay):
  """The last of the weights `w`, one leaf, by the formulas of the three papers."""
  w, mean, square = w.astype(np.float64), 0.0, 0.0
  for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
    g = g.astype(np.float64) + (0 if name == "adamw" else decay * w)
    if name == "sgd":
      mean = momentum * mean + g
      w = w - rate * mean
      continue
    mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
    step = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-3)
    w = w - rate * (step + (decay * w if name == "adamw" else 0))
  return w


@CASES
def test_update_rules_against_numpy(name, where, momentum):
  start, gradients, rates, end = run(name, where, momentum)
  used = {rates[2][p] for p in start}  # the first epoch after the warm-up
  assert len(used) == 3 and used < {rate[p] for rate in rates for p in start}
  expected = {
    p: in_numpy(
      name, momentum, w, [g[p] for g in gradients], [r[p] for r in rates], decay_at(where, p)
    )
    for p, w in start.items()
  }
  assert_same(end, expected, start)


@CASES
def test_update_rules_against_torch(name, where, momentum):
  torch = pytest.importorskip("torch")
  start, gradients, rates, end = run(name, where, momentum)
  leaves = {p: torch.nn.Parameter(torch.tensor(w)) for p, w in start.items()}
  groups = [
    {"params": [leaf], "weight_decay": decay_at(where, p), "path": p} for p, leaf in leaves.items()
  ]
  kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]
  rule = kind(groups, lr=1.0, **({"momentum": momentum} if name == "sgd" else {"eps": 1e-3}))
  for gradient, rate in zip(gradients, rates, strict=True):
    for group in rule.param_groups:
      leaves[group["path"]].grad = torch.tensor(gradient[group["path"]])
      group["lr"] = rate[group["path"]]
    rule.step()
  assert_same(end, {p: leaf.detach().numpy() for p, leaf in leaves.items()}, start)


def test_the_last_bias_of_every_head_is_found():
  assert partition.last_biases(tune()) == {"params/head/out/bias"}
  deit = models.ViT(5, width=12, depth=1, heads=3, patch=8, image_size=16, distilled=True)
  two = Tuned(deit, (), sites(deit, IMAGES))
  assert partition.last_biases(two) == {"params/head/bias", "params/head_dist/bias"}
  assert partition.last_biases(Tuned(deit, (), sites(deit, IMAGES), head="")) == set()


@pytest.mark.slow
def test_sgd_trains_a_model_and_keeps_one_buffer(prepared, digits):
  parts, state, take = prepared({"optim.name": "sgd", "optim.lr": 0.5})
  buffers = [leaf for leaf in jax.tree.leaves(state["opt"]) if leaf.ndim]
  assert sum(b.size for b in buffers) == sum(leaf.size for leaf in jax.tree.leaves(parts.train))
  batch = digits(parts, 40, 1)
  sums = [float(take(state, batch * n)[0]["tally"]["loss"]) for n in (1, 7, 8)]
  assert sums[2] - sums[1] < 0.95 * sums[0]


def test_config_refuses_other_names(tiny):
  for key, value, sentence in (
    ("optim.name", "adamm", "optim.name='adamm' does not exist; did you mean 'adam'?"),
    ("optim.decay", "bias", "There are matrices, all."),
    ("optim.momentum", 1.0, "optim.momentum=1.0 is outside [0, 1)."),
  ):
    with pytest.raises(ValueError, match=re.escape(sentence)):
      tiny({key: value})
