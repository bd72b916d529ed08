"""Evaluation counts every image once, whatever the batches and devices."""

import jax
import numpy as np
import pytest

from peft_jax.train import evaluate, shard
from peft_jax.tuned import join


@pytest.fixture(params=[1, 8])
def predicted(request, prepared):
  """(parts, a function (n, batch size) -> metrics of the first n images) on some devices."""
  parts, _, _ = prepared()
  parallel = shard.parallel("jit", jax.devices()[: request.param])
  logits = evaluate.predictor(parts.tuned, "inception", parallel)
  images, labels = parts.eval_split.images(), parts.eval_split.labels
  variables = jax.tree.map(lambda x: x * 3, join(parts.train, parts.frozen))

  def metrics(n, batch_size):
    return evaluate.evaluate(
      logits, variables, images[:n].__getitem__, labels[:n], batch_size, parallel
    )

  return parts, metrics, lambda x: logits(variables, x), (images, labels)


def test_equals_a_plain_loop_for_every_size(predicted):
  parts, metrics, logits, (images, labels) = predicted
  out = np.concatenate([np.asarray(logits(images[i : i + 8])) for i in range(0, 72, 8)])
  log_p = out - np.log(np.exp(out.astype(np.float64)).sum(-1, keepdims=True))
  right = out.argmax(-1) == labels[:72]
  assert right.any() and not right.all()
  for n in (1, 7, 63, 64, 65):
    for batch_size in (1, 7, 64, 100):
      found = metrics(n, batch_size)
      assert found["count"] == n and found["correct"] == right[:n].sum()
      assert found["accuracy"] == right[:n].mean()
      expected = -log_p[np.arange(n), labels[:n]].mean()
      # Another batch shape is another program, which rounds otherwise.
      np.testing.assert_allclose(found["loss"], expected, rtol=1e-4)
  for label, accuracy in enumerate(found["per_class"]):
    mine = right[:65][labels[:65] == label]
    assert accuracy == (mine.mean() if len(mine) else None)
