"""Linear probes: logistic regression on pixels or on a backbone's frozen features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peft_jax import data

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the L2 penalty, on standardised features


def pixels(images):
  """[N, H * W * 3] of uint8 images."""
  return images.reshape(len(images), -1).astype(np.float32)


def features(model, params, normalize, images):
  """[N, D]: the pooled output of `model` (without a head) for uint8 images."""

  @jax.jit
  def forward(batch):
    return model.apply({"params": params}, data.normalize(batch, normalize))

  batches = np.split(images, range(100, len(images), 100))
  return np.concatenate([np.asarray(forward(batch)) for batch in batches])


def probe(dataset, features, seeds):
  """The result of a probe for each seed; the strength is chosen on train800 -> val200."""
  splits = {name: dataset.split(name) for name in ("train800", "val200", "train800val200", "test")}
  known = {name: features(splits[name].images()) for name in ("train800val200", "test")}
  known["train800"], known["val200"] = known["train800val200"][:800], known["train800val200"][800:]
  results = []
  for seed in seeds:
    score = functools.partial(accuracy, known, splits, dataset.num_classes, seed)
    val = {strength: score("train800", "val200", strength) for strength in STRENGTHS}
    strength = max(STRENGTHS, key=lambda s: (val[s], s))
    test = score("train800val200", "test", strength)
    results.append(
      {"test_accuracy": test, "strength": strength, "val200_accuracy": val, "seed": seed}
    )
  return results


def accuracy(known, splits, classes, seed, train, test, strength):
  """Test accuracy of logistic regression fitted on the standardised training features."""
  mean, deviation = known[train].mean(0), known[train].std(0) + 1e-6
  x, x_test = ((known[name] - mean) / deviation for name in (train, test))
  parameters = fit(jnp.asarray(x), jnp.asarray(splits[train].labels), classes, strength, seed)
  logits = x_test @ np.asarray(parameters["kernel"]) + np.asarray(parameters["bias"])
  return float((logits.argmax(-1) == splits[test].labels).mean())


@functools.partial(jax.jit, static_argnames=("classes", "seed"))
def fit(x, labels, classes, strength, seed, steps=200):
  """Minimises mean cross-entropy + strength/2 |kernel|^2 by L-BFGS from N(0, 0.02^2)."""
  kernel = 0.02 * jax.random.normal(jax.random.key(seed), (x.shape[1], classes))
  start = {"kernel": kernel, "bias": jnp.zeros(classes)}
  tx = optax.lbfgs()

  def loss(p):
    logits = x @ p["kernel"] + p["bias"]
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return entropy + strength / 2 * jnp.sum(p["kernel"] ** 2)

  def step(carry, _):
    p, state = carry
    value, grad = optax.value_and_grad_from_state(loss)(p, state=state)
    updates, state = tx.update(grad, state, p, value=value, grad=grad, value_fn=loss)
    return (optax.apply_updates(p, updates), state), value

  return jax.lax.scan(step, (start, tx.init(start)), length=steps)[0][0]
