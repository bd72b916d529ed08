"""Scores of a backbone's weights from a task's images: signed sums of gradients, in float32.

    scores = | sum over batches of dL/dW |          GPS, section 3.2

for the supervised contrastive loss of two augmented views (Khosla et al. 2020, arXiv:2004.11362) or
the cross-entropy of a random head. The released code adds the gradients of the batches up before it
takes absolute values, so what pulls a weight to and fro cancels.

The contrastive loss needs the features of both views before either can be gone back through. With F
the operations of one view's forward pass, a batch takes two programs,

    x = f(view 0), kept;  y = f(view 1);  dx, dy = dL/dx, dL/dy;  back from dx       4 F
    f(view 1), kept;  back from dy                                                   3 F

7 F where keeping both views takes 6 F, but the activations of one view at a time. (In one program
XLA is free to let the two overlap, and on a CPU it does, across an optimization_barrier.)
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


def gradient_sums(model, params, paths, batches, steps, config, loss, temperature=0.07, show=None,
                  drop_path=0.0):
  """{path: float32 on the host, the kernel's shape}: the gradients of `steps` batches, added up.

  model: a backbone of peft_jax.models; its features, what the head reads, are what the loss sees.
  params: its parameters; a head in them is not used. paths: flat paths in `params` to be scored.
  batches: step -> {"image": uint8 [B, S, S, 3], "label": int32 [B]}; sharded ones give the same
    loss, whose pairs are those of the whole batch.
  config: seed, data.normalize and, for the cross-entropy, data.augment are used.
  loss: "contrast" (two views of each image) or "cross_entropy" (one, augmented as in training,
    before a random head of the model's classes).
  show: called with the number of steps done.
  drop_path: rate of the last block while scoring.
  """
  wanted, rest = parted(params, paths)
  parts = [jax.jit(part, donate_argnums=0)
           for part in passes(model, config, loss, temperature, drop_path)]
  # Placed as its leaves are, so that the second step compiles nothing anew.
  total = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), wanted)
  ways = {"contrast": ["contrast"] * 2, "cross_entropy": [config.data.augment]}[loss]
  for step in range(steps):
    batch, left = batches(step), None
    views = [data.augment(batch["image"], key(config.seed, f"score view {i}", step), how)
             for i, how in enumerate(ways)]
    for part in parts:
      total, left = part(total, left, wanted, rest, views, batch["label"], jnp.int32(step))
      jax.block_until_ready((total, left))  # of several virtual devices a long queue can hang
    if show:
      show(step + 1)
  return jax.device_get(total)


def parted(params, paths):
  """({path: leaf} of `paths`, those of the others) of a backbone's parameters, without its head."""
  in_head = lambda path: is_head(path.rpartition("/")[0], Tuned.head)  # noqa: E731
  rest = {path: leaf for path, leaf in flat(params).items() if not in_head(path)}
  return {path: rest.pop(path) for path in paths}, rest


def headless(model, params):
  """(the backbone that gives features, {path: leaf} of what it reads of `params`)."""
  return model.clone(num_classes=0, head_layers=1), parted(params, ())[1]


def random_head(seed, width, classes):
  """[width, classes] float32: the head of the cross-entropy, which no one has trained; no bias."""
  return HEAD_STD * jax.random.normal(key(seed, "score head"), (width, classes))


def passes(model, config, loss, temperature=0.07, drop_path=0.0):
  """Pure functions that, one after the other, add the gradients of one batch to `total`:

    (total, left, wanted, rest, views, labels, step) -> (total, left)

  wanted, rest: as `parted` gives them; total: {path: float32} as `wanted`; left: what a pass leaves
    to the next one, None for the first; views: uint8 [B, S, S, 3] each. The others: see
    `gradient_sums`.
  """
  classes = model.num_classes
  model = model.clone(num_classes=0, head_layers=1, drop_path=drop_path)

  def features(i, rest, views, now):
    """The features of view i as a function of `wanted`."""
    images = data.normalize(views[i], config.data.normalize)
    rngs = {"dropout": key(config.seed, f"score view {i} drop path", now)}
    return lambda wanted: model.apply(
      {"params": nest(rest | wanted)}, images, train=True, rngs=rngs)

  def contrast(x, y, labels):
    return contrastive_loss(jnp.concatenate([x, y]), jnp.concatenate([labels] * 2), temperature)

  def first_view(total, left, wanted, rest, views, labels, now):
    x, back = jax.vjp(features(0, rest, views, now), wanted)
    y = features(1, rest, views, now)(wanted)
    dx, dy = jax.grad(contrast, (0, 1))(x, y, labels)
    return added(total, *back(dx)), dy

  def second_view(total, left, wanted, rest, views, labels, now):
    _, back = jax.vjp(features(1, rest, views, now), wanted)
    return added(total, *back(left)), None

  def cross_entropy(total, left, wanted, rest, views, labels, now):
    def loss_of(wanted):
      x = features(0, rest, views, now)(wanted)
      logits = x.astype(jnp.float32) @ random_head(config.seed, x.shape[-1], classes)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return added(total, jax.grad(loss_of)(wanted)), None

  return {"contrast": (first_view, second_view), "cross_entropy": (cross_entropy,)}[loss]


def added(total, gradients):
  return jax.tree.map(lambda sum_, g: sum_ + g.astype(jnp.float32), total, gradients)
