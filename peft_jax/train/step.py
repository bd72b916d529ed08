"""One training step, and the state it carries: pure functions of arrays.

    state = {"train", "opt", "ema", "stats", "tally", "step", "bad"}

train: the trained variables; opt: the optimizer's; ema: the average of `train`, absent when off;
stats: {"batch_stats": ...}, what batch norms keep, absent in a model without any;
tally: {"loss", "correct", "seen"} since it was last emptied; step: steps done; bad: the first
step whose loss or gradient was not finite, -1 when there is none. Random keys are made from
(seed, purpose, step) and never stored.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from peft_jax import data, partition
from peft_jax.keys import key
from peft_jax.train import schedule
from peft_jax.tree import flat, nest
from peft_jax.tuned import join


def optimizer(tuned, train, optim, steps_per_epoch):
  """The update rule `optim.name`, with a learning rate for each group of `tuned.labels`.

  With gradient g, weight w, decay d = optim.weight_decay, rate r of the schedule and momentum m:

      adamw   w - r (adam(g) + d w)          decoupled decay
      adam    w - r adam(g + d w)            torch.optim.Adam
      sgd     v = m v + g + d w;   w - r v   torch.optim.SGD, v starting at zero

  adam(g) = mean / (sqrt(square) + eps), both moments corrected for their start at zero; b1, b2.
  Where d acts: see `decays`. `optim.clip` bounds the global norm of all g together, before the
  decay. Groups: "head" (optim.head_lr), every method's collection and "backbone"
  (optim.group_lr); those without a rate take optim.lr. Of leaves of which only some places are
  trained the others get neither gradient nor update: tx.update(..., masks=partition.masks(...)).
  """
  labels = tuned.labels(train)
  rates = rates_of(optim, set(jax.tree.leaves(labels)), steps_per_epoch)
  adam = optax.scale_by_adam(optim.b1, optim.b2, optim.eps)
  decay = optax.add_decayed_weights(optim.weight_decay, decays(tuned, train, optim.decay))
  rules = {
    "adamw": (adam, decay),
    "adam": (decay, adam),
    "sgd": (decay, optax.trace(optim.momentum)),
  }
  # Outermost, both: the clipping sees no other gradient, and the decay acts on whole leaves.
  chosen = [masked()] if partition.partly(tuned, tuned.shapes) else []
  return optax.chain(
    *chosen,
    optax.clip_by_global_norm(optim.clip) if optim.clip else optax.identity(),
    *rules[optim.name],
    optax.multi_transform(
      {group: optax.scale_by_learning_rate(rate) for group, rate in rates.items()}, labels
    ),
    *chosen,
  )


def masked():
  """Zeros what update(..., masks={path: bool}) excludes, element by element."""

  def update(updates, state, params=None, *, masks, **more):
    return _where(masks, updates, jax.tree.map(jnp.zeros_like, updates)), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _where(masks, tree, others):
  """`tree`, but `others` where one of the masks, {path: bool}, says no."""
  if not masks:
    return tree
  leaves, others = flat(tree), flat(others)
  return nest(leaves | {path: jnp.where(m, leaves[path], others[path])
                        for path, m in masks.items()})


def decays(tuned, train, where):
  """Where weight decay acts, a tree of bools in the structure of `train`.

  where: "matrices", kernels and the methods' matrices (`partition.vectors` are spared); or "all",
    everything but the bias of the head's last layer, as the SGD of VPT's code has it.
  """
  if where == "matrices":
    return jax.tree.map(lambda vector: not vector, partition.vectors(tuned, train))
  spared = partition.last_biases(tuned)
  return nest({path: path not in spared for path in flat(train)})


def rates_of(optim, groups, steps_per_epoch):
  """{group: function step -> learning rate} for the groups that are trained."""
  rates = {}
  for group in sorted(groups):
    own = optim.head_lr if group == "head" else optim.group_lr.get(group)
    rates[group] = schedule.cosine(
      optim.lr if own is None else own,
      steps_per_epoch=steps_per_epoch,
      epochs=optim.epochs,
      warmup_epochs=optim.warmup_epochs,
      warmup_lr=optim.warmup_lr,
      min_lr=optim.min_lr,
      lag=optim.lag,
      shifted=optim.shifted,
    )
  return rates


def start(train, tx, ema, stats=None):
  """The state before the first step; the average starts as a copy of `train`.

  stats: see `statistics.start`.
  """
  state = {
    "train": train,
    "opt": tx.init(train),
    "tally": empty_tally(),
    "step": jnp.zeros((), jnp.int32),
    "bad": jnp.full((), -1, jnp.int32),
  }
  state |= {"stats": stats} if stats else {}
  return state | ({"ema": jax.tree.map(jnp.array, train)} if ema else {})


def outcome(state):
  """The variables that a run evaluates and writes: trained, or their average, and statistics."""
  return state.get("ema", state["train"]) | state.get("stats", {})


def empty_tally():
  return {
    "loss": jnp.zeros((), jnp.float32),
    "correct": jnp.zeros((), jnp.int32),
    "seen": jnp.zeros((), jnp.int32),
  }


def cross_entropy(logits, labels, smoothing=0.0):
  """Softmax cross-entropy [B] in float32; smoothing/K of the target goes to every class."""
  logits = logits.astype(jnp.float32)
  classes = logits.shape[-1]
  target = jax.nn.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
  return optax.softmax_cross_entropy(logits, target)


def training_step(tuned, tx, config, axis=None):
  """A pure function (state, frozen, batch) -> state.

  batch: {"image": uint8 [B, S, S, 3], "label": int32 [B]}; its mean loss plus the methods'
    penalty is what is minimised, with respect to state["train"] only. An image mixed of two
    (mixup, cutmix) counts as correct with the label that has the larger share.
  config: of a run, resolved.
  axis: name of a mapped axis over which the batch is divided (pmap); augmentation then equals
    that of the undivided batch, but mixing pairs the images of each part, with the share of the
    undivided batch; dropout draws differ, and batch norms take their own part's mean and variance.
  """

  seed, ema = config.seed, config.ema

  def step(state, frozen, batch):
    now = state["step"]
    first = 0 if axis is None else jax.lax.axis_index(axis) * batch["label"].shape[0]
    images = data.augment(batch["image"], key(seed, "augment", now), config.data.augment, first)
    images, share = data.mix(images, key(seed, "mix", now), config.data.mixup, config.data.cutmix)
    images = data.normalize(images, config.data.normalize)
    images = data.erase(images, key(seed, "erase", now), config.data.erasing, first)
    labels = batch["label"]
    others = None if share is None else labels[::-1]
    rngs = {purpose: key(seed, purpose, now) for purpose in ("dropout", "tuning")}
    if axis is not None:
      rngs = {name: jax.random.fold_in(k, jax.lax.axis_index(axis)) for name, k in rngs.items()}
    before = state.get("stats", {})

    def loss_of(train):
      variables = join(train, frozen) | before
      logits, stats = tuned.apply(variables, images, train=True, rngs=rngs, mutable=list(before))
      loss = cross_entropy(logits, labels, config.label_smoothing).mean()
      if share is not None:
        loss = loss * share
        loss += (1 - share) * cross_entropy(logits, others, config.label_smoothing).mean()
      return loss + tuned.penalty(variables), (logits, stats)

    (loss, (logits, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(state["train"])
    likely = labels if share is None else jnp.where(share >= 0.5, labels, others)
    correct = (logits.argmax(-1) == likely).sum(dtype=jnp.int32)
    seen = jnp.int32(batch["label"].shape[0])
    if axis is not None:
      loss, grads, stats = jax.lax.pmean((loss, grads, stats), axis)
      correct, seen = jax.lax.psum((correct, seen), axis)

    with jax.numpy_dtype_promotion("standard"):  # optax counts on it: decay**count
      masks = partition.masks(tuned, frozen)
      updates, opt = tx.update(grads, state["opt"], state["train"], masks=masks)
    train = optax.apply_updates(state["train"], updates)
    # Of the updated values too: what is saved after this step must be sound.
    norms = optax.global_norm(grads), optax.global_norm(train)
    finite = jnp.isfinite(loss) & jnp.isfinite(norms[0]) & jnp.isfinite(norms[1])
    new = {
      "train": train,
      "opt": opt,
      "tally": {
        "loss": state["tally"]["loss"] + loss * seen.astype(jnp.float32),
        "correct": state["tally"]["correct"] + correct,
        "seen": state["tally"]["seen"] + seen,
      },
      "step": now + 1,
      "bad": jnp.where((state["bad"] < 0) & ~finite, now, state["bad"]),
    }
    if stats:
      new["stats"] = stats
    if ema:
      average = optax.incremental_update(train, state["ema"], 1 - ema)
      new["ema"] = _where(masks, average, train)  # an average rounds what never moved
    return new

  return step
