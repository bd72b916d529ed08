"""One training step: what moves, by how much, and that devices change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import data, keys
from peft_jax.train import step as steps
from peft_jax.tree import flat, nest
from peft_jax.tuned import join


def moved(before, after):
  """{path: largest change} of two trees."""
  after = flat(after)
  return {path: float(abs(after[path] - leaf).max()) for path, leaf in flat(before).items()}


@pytest.mark.parametrize("methods", [("san",), ("ssf", "lora")], ids="+".join)
def test_everything_trained_moves_and_frozen_leaves_keep_their_bits(prepared, digits, methods):
  parts, state, take = prepared({"methods": methods, "optim.weight_decay": 0.5})
  new, frozen = take(state, digits(parts, 8, 3))
  still = {path for path, change in moved(parts.train, new["train"]).items() if change == 0}
  # A shift of all keys moves no softmax, and without decay nothing else would.
  assert all("/k/" in path for path in still)
  assert flat(frozen).keys() == flat(parts.frozen).keys()
  assert not flat(frozen).keys() & flat(new["train"]).keys()
  for path, leaf in flat(parts.frozen).items():
    np.testing.assert_array_equal(flat(frozen)[path], leaf, err_msg=path)
  assert int(new["step"]) == 3 and int(new["bad"]) == -1


def test_first_step_is_adamw_with_a_rate_per_group_and_decay_on_matrices_only(prepared, digits):
  parts, state, take = prepared(
    {
      "methods": ("lora", "bias"),
      "optim.lr": 1e-3,
      "optim.head_lr": 1e-2,
      "optim.group_lr.lora": 1e-4,
      "optim.min_lr": 1.0,  # lowered to each lr: no cosine
      "optim.weight_decay": 0.1,
      "optim.eps": 1e-15,
    }
  )
  draw = np.random.default_rng(0).normal
  start = jax.tree.map(lambda x: x + draw(0, 0.3, x.shape).astype(x.dtype), state["train"])
  new, _ = take({**state, "train": start}, digits(parts, 8, 1))
  for path, before in flat(jax.device_get(start)).items():
    after = flat(new["train"])[path]
    rate = 1e-2 if "/head/" in path else 1e-4 if path.startswith("lora") else 1e-3
    decay = 0.1 if path.endswith(("kernel", "/a", "/b")) else 0.0
    step = (before - after) / rate - decay * before
    # Adam's first update is the gradient's sign, less where the gradient is as small as eps.
    rounding = 1e-3 + 2e-7 * abs(before).max() / rate
    assert abs(step).max() < 1 + rounding, path
    assert (abs(step) > 1 - rounding).mean() > 0.9 or path.endswith("/k/bias"), path


CLIPPED = {"ema": 0.75, "optim.clip": 1e-6}


def test_clip_bounds_the_norm_of_all_gradients_together(prepared, digits):
  parts, state, take = prepared(CLIPPED)
  new, _ = take(state, digits(parts, 8, 1))
  squares = [(leaf**2).sum() for leaf in jax.tree.leaves(new["opt"][1].mu)]
  np.testing.assert_allclose(np.sqrt(sum(squares)), 0.1 * 1e-6, rtol=1e-3)


def test_average_starts_as_a_copy_and_is_not_corrected(prepared, digits):
  parts, state, take = prepared(CLIPPED)
  new, _ = take(state, digits(parts, 8, 1))
  assert max(moved(parts.train, new["train"]).values()) > 1e-3
  for path, old in flat(parts.train).items():
    expected = 0.75 * np.asarray(old) + 0.25 * flat(new["train"])[path]
    np.testing.assert_allclose(flat(new["ema"])[path], expected, rtol=1e-6, atol=1e-7)


def test_first_step_that_is_not_finite_is_remembered(prepared, digits):
  parts, state, take = prepared(CLIPPED)
  train = flat(state["train"])
  train["params/head/bias"] = jnp.full_like(train["params/head/bias"], jnp.inf)
  new, _ = take({**state, "train": nest(train), "step": jnp.int32(4)}, digits(parts, 8, 2))
  assert int(new["bad"]) == 4 and int(new["step"]) == 6


def test_devices_change_nothing_but_rounding(prepared, digits):
  parts, state, take = prepared({"data.augment": "flip", "methods": ("ssf",)})
  batches = digits(parts, 16, 2)
  one, _ = take(state, batches)
  assert max(moved(parts.train, one["train"]).values()) > 1e-3
  for how in ("jit", "pmap"):
    many, _ = take(state, batches, how, 8)
    np.testing.assert_allclose(many["tally"]["loss"], one["tally"]["loss"], rtol=1e-5)
    assert many["tally"]["seen"] == one["tally"]["seen"] == 32
    for path, leaf in flat(one["opt"][1].mu).items():
      np.testing.assert_allclose(
        flat(many["opt"][1].mu)[path], leaf, rtol=1e-3, atol=1e-5, err_msg=f"{how} {path}"
      )


MIXED = {
  "data.mixup": 0.8,
  "data.cutmix": 1.0,
  "data.normalize": "none",
  "label_smoothing": 0.1,
  "methods": ("ssf",),
}


def test_the_loss_of_a_mixed_batch_is_that_of_its_soft_targets(prepared, digits):
  parts, state, take = prepared(MIXED)
  batch = digits(parts, 16, 1)[0]
  assert (batch["label"] != batch["label"][::-1]).any()
  kinds = set()
  predict = jax.jit(lambda images: parts.tuned.apply(join(parts.train, parts.frozen), images))
  for now in range(4):
    new, _ = take({**state, "step": jnp.int32(now)}, [batch])
    images, share = data.mix(batch["image"], keys.key(0, "mix", now), 0.8, 1.0)
    share = np.float64(share)
    kinds.add(bool((images == jnp.round(images)).all()))
    logits = np.asarray(predict(data.normalize(images, "none")), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    smooth = np.eye(10)[batch["label"]] * (1 - 0.1) + 0.1 / 10
    target = share * smooth + (1 - share) * smooth[::-1]  # timm's mixup_target
    expected = -(target * log_p).sum(-1).mean()
    np.testing.assert_allclose(new["tally"]["loss"] / 16, expected, rtol=1e-5)
    likely = batch["label"] if share >= 0.5 else batch["label"][::-1]
    assert new["tally"]["correct"] == (logits.argmax(-1) == likely).sum()
  assert kinds == {True, False}  # both were drawn


@pytest.mark.slow
def test_mixing_and_erasing_do_not_depend_on_the_devices(prepared, digits):
  parts, state, take = prepared({**MIXED, "data.erasing": 0.5})
  batches = digits(parts, 16, 2)
  one, _ = take(state, batches)
  many, _ = take(state, batches, "jit", 8)
  plain, _ = prepared(MIXED)[2](state, batches)
  assert abs(plain["tally"]["loss"] - one["tally"]["loss"]) > 1e-3
  np.testing.assert_allclose(many["tally"]["loss"], one["tally"]["loss"], rtol=1e-5)
  assert many["tally"]["correct"] == one["tally"]["correct"]
  for path, leaf in flat(one["opt"][1].mu).items():
    np.testing.assert_allclose(flat(many["opt"][1].mu)[path], leaf, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_under_pmap_each_device_mixes_its_own_part(prepared, digits):
  parts, state, take = prepared(MIXED)
  batch = digits(parts, 16, 1)[0]
  # Pairs of the first half and of the second, put where the whole batch finds them.
  places = [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 4, 5, 6, 7]
  paired = {name: values[np.asarray(places)] for name, values in batch.items()}
  one, _ = take(state, [paired])
  two, _ = take(state, [batch], "pmap", 2)
  np.testing.assert_allclose(two["tally"]["loss"], one["tally"]["loss"], rtol=1e-5)
  other, _ = take(state, [batch])
  assert abs(other["tally"]["loss"] - one["tally"]["loss"]) > 1e-4


def test_label_smoothing_and_cross_entropy_against_numpy():
  logits = np.array([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]], np.float32)
  labels = np.array([0, 1])
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  for smoothing in (0.0, 0.3):
    target = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    found = steps.cross_entropy(logits, labels, smoothing)
    np.testing.assert_allclose(found, -(target * log_p).sum(-1), rtol=1e-6)


def test_keys_differ_by_seed_purpose_and_step():
  made = [
    keys.key(seed, purpose, step)
    for seed in (0, 1)
    for purpose in ("dropout", "augment")
    for step in (0, 1)
  ]
  assert len({jax.random.key_data(k).tobytes() for k in made}) == 8
