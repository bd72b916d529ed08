"""Scores of a backbone's weights from a task's images: signed sums of gradients, in float32.

    scores = | sum over batches of dL/dW |          GPS, section 3.2

for the supervised contrastive loss of two augmented views (Khosla et al. 2020, arXiv:2004.11362) or
the cross-entropy of a random head. The released code adds the gradients of the batches up before it
takes absolute values, so what pulls a weight to and fro cancels.
"""

import jax
import jax.numpy as jnp
import optax

from peft_jax import data
from peft_jax.keys import key
from peft_jax.sites import is_head
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned

HEAD_STD = 0.02  # of the random head of the cross-entropy


def contrastive_loss(features, labels, temperature):
  """The supervised contrastive loss of N feature vectors, a float32 scalar.

    L = mean_i -mean_{p in P(i)} [ s_ip - log sum_{a != i} exp s_ia ]    s_ij = z_i . z_j / tau

  z: features / |features|; P(i): the others with i's label, its own second view among them; tau:
  the temperature.
  features: [N, D]; labels: [N]; every label must occur twice or more, as two views make sure.
  GPS, equation 2, over a batch instead of the whole set as in the released code.
  """
  z = features.astype(jnp.float32)
  z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
  others = ~jnp.eye(len(z), dtype=bool)
  similar = jnp.where(others, z @ z.T / temperature, -jnp.inf)
  positive = (labels[:, None] == labels[None]) & others
  log_share = similar - jax.nn.logsumexp(similar, axis=1, keepdims=True)
  return -jnp.mean(jnp.sum(log_share, 1, where=positive) / jnp.sum(positive, 1, dtype=jnp.float32))


def headless(model, params):
  """(the backbone that gives features, {path: leaf} of what it reads of `params`)."""
  in_head = lambda path: is_head(path.rpartition("/")[0], Tuned.head)  # noqa: E731
  rest = {path: leaf for path, leaf in flat(params).items() if not in_head(path)}
  return model.clone(num_classes=0, head_layers=1), rest


def random_head(seed, width, classes):
  """[width, classes] float32: the head of the cross-entropy, which no one has trained; no bias."""
  return HEAD_STD * jax.random.normal(key(seed, "score head"), (width, classes))


def gradient_sums(model, params, paths, batches, steps, config, loss, temperature=0.07, show=None):
  """{path: float32, the kernel's shape}: the gradients of `steps` batches, added up.

  model: a backbone of peft_jax.models; its features, what the head reads, are what the loss sees.
  params: its parameters; a head in them is not used. paths: flat paths in `params` to be scored.
  batches: step -> {"image": uint8 [B, S, S, 3], "label": int32 [B]}; sharded ones give the same
    loss, whose pairs are those of the whole batch.
  config: seed, data.normalize and, for the cross-entropy, data.augment are used.
  loss: "contrast" (two views of each image) or "cross_entropy" (one, augmented as in training,
    before a random head of the model's classes).
  show: called with the number of steps done.
  """
  classes = model.num_classes
  model, params = headless(model, params)
  wanted = {path: params.pop(path) for path in paths}

  def loss_of(wanted, params, batch, now):
    def features(purpose, how):
      images = data.augment(batch["image"], key(config.seed, purpose, now), how)
      images = data.normalize(images, config.data.normalize)
      return model.apply({"params": nest(params | wanted)}, images)

    if loss == "cross_entropy":
      x = features("score", config.data.augment)
      logits = x.astype(jnp.float32) @ random_head(config.seed, x.shape[-1], classes)
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    views = [features(f"score view {i}", "contrast") for i in range(2)]
    labels = jnp.concatenate([batch["label"]] * 2)
    return contrastive_loss(jnp.concatenate(views), labels, temperature)

  @jax.jit
  def add(total, wanted, params, batch, now):
    gradients = jax.grad(loss_of)(wanted, params, batch, now)
    return jax.tree.map(lambda sum_, g: sum_ + g.astype(jnp.float32), total, gradients)

  total = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in wanted.items()}
  for step in range(steps):
    total = add(total, wanted, params, batches(step), jnp.int32(step))
    if show:
      show(step + 1)
  return total
