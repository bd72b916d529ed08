"""Squared gradients of a backbone's parameters on a task's images, summed: SPT's sensitivity.

    scores = sum over groups of (mean over the group of dL/dW)^2

L: the cross-entropy before a random head. Groups of one are Algorithm 1 of SPT (arXiv:2303.08566),
with labels drawn from the model itself the diagonal of its Fisher information; SPT's released code
takes groups of 32.

What it costs on a device, of an image of ViT-B/16, in XLA's counts for a CPU:

    group_size                   operations   bytes moved   temporary memory
    32                           105.7 G      1.8 GB        9.2 GB
    1                            105.9 G      3.9 GB        0.3 GB
    the gradient of 32, alone    105.7 G      1.7 GB        9.2 GB

Beside that every device holds the parameters and one sum of their size, in float32. Groups are
worked off one after the other: side by side, each would hold a gradient of all that is scored.

A device computes whole groups and squares their gradients before anything is added up, so the
scores do not depend on the number of devices but for the order in which they are added.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from peft_jax import data
from peft_jax.keys import key
from peft_jax.selection.scores import headless, random_head
from peft_jax.tree import nest

AXIS = "groups"
AT_ONCE = 32  # images that a device is given at a time, where a group is not larger


def squared_gradients(model, params, paths, images, labels, config, *, group_size=32, drawn=False,
                      drop_path=0.0, devices=None, show=None):
  """{path: float32, the leaf's shape, on the host}: squared gradients, summed over groups.

  model: a backbone of peft_jax.models. params: its parameters; a head in them is not used.
  paths: flat paths in `params` to be scored.
  images: places (int array, of 0..N-1) -> uint8 [n, S, S, 3], taken as they are; labels: int [N].
    The groups are consecutive; the last one holds what is left.
  config: seed and data.normalize are used.
  group_size: images whose mean gradient is squared, 1 or more; each device holds a group's
    activations.
  drawn: labels are drawn from what the model says of each image before the random head, by (seed,
    image's place), instead of `labels`.
  drop_path: rate of the last block while scoring, drawn by (seed, group's first place).
  devices: those that share the groups; all by default.
  show: called with the number of images done.
  Raises ValueError when every score is zero, as below a layer scale of zeros.
  """
  if group_size < 1 or not len(labels):
    raise ValueError(f"{len(labels)} images in groups of {group_size} give no scores; take one "
                     "image or more, and groups of 1 or more.")
  mesh = Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,),
              axis_types=(AxisType.Auto,))
  copied, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))
  classes = model.num_classes
  model, rest = headless(model.clone(drop_path=drop_path), params)
  wanted = {path: rest.pop(path) for path in paths}
  wanted, rest = jax.device_put((wanted, rest), copied)
  start = lambda: {path: jnp.zeros((mesh.size, *leaf.shape)) for path, leaf in wanted.items()}  # noqa: E731
  total = jax.jit(start, out_shardings=split)()
  add = adder(model, classes, mesh, config, drawn)
  groups = -(-len(labels) // (group_size * mesh.size))  # of each device
  at_once = mesh.size * min(groups, max(1, AT_ONCE // group_size)) * group_size
  for first in range(0, len(labels), at_once):
    batch = grouped(images, labels, first, at_once, group_size)
    total = add(total, wanted, rest, jax.device_put(batch, split))
    jax.block_until_ready(total)
    if show:
      show(min(first + at_once, len(labels)))
  added = jax.jit(lambda total: jax.tree.map(lambda x: x.sum(0), total), out_shardings=copied)
  total = jax.device_get(added(total))
  if not any(leaf.any() for leaf in total.values()):
    raise ValueError("Every score is zero, so nothing can be chosen by it; are the weights those "
                     "of a trained backbone?")
  return total


def grouped(images, labels, first, n, group_size):
  """n places from `first` on as a batch [groups, group_size, ...]; weight 0 where none is left."""
  places = np.arange(first, first + n, dtype=np.int32)
  there = places < len(labels)
  known = places[there]
  filled = lambda x: np.concatenate([x, np.zeros((n - len(x), *x.shape[1:]), x.dtype)])  # noqa: E731
  cut = lambda x: x.reshape(-1, group_size, *x.shape[1:])  # noqa: E731
  return {
    "image": cut(filled(np.asarray(images(known)))),
    "label": cut(filled(np.asarray(labels)[known].astype(np.int32))),
    "place": cut(places),
    "weight": cut(there) / np.maximum(cut(there).sum(1, keepdims=True, dtype=np.float32), 1),
  }


def adder(model, classes, mesh, config, drawn):
  """add(total, wanted, rest, batch) -> total: the compiled step, which uses `total` up.

  total: {path: float32 [devices, *shape]}; wanted, rest: parameters that are scored, and the
  others; batch: as `grouped` makes it, its groups divided over the devices.
  """
  def loss_of(wanted, rest, group):
    draws = {"dropout": key(config.seed, "score dropout", group["place"][0])}
    x = model.apply({"params": nest(rest | wanted)},
                    data.normalize(group["image"], config.data.normalize),
                    train=bool(model.drop_path), rngs=draws if model.drop_path else None)
    logits = x.astype(jnp.float32) @ random_head(config.seed, x.shape[-1], classes)
    labels = group["label"]
    if drawn:
      draw = lambda place, row: jax.random.categorical(key(config.seed, "score label", place), row)  # noqa: E731
      labels = jax.vmap(draw)(group["place"], jax.lax.stop_gradient(logits))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(group["weight"] * losses)

  def add(total, wanted, rest, batch):
    # Told to differ between devices, parameters get gradients of this device's group alone.
    wanted, rest = jax.lax.pcast((wanted, rest), AXIS, to="varying")

    def one(total, group):
      gradients = jax.grad(loss_of)(wanted, rest, group)
      square = lambda sum_, g: sum_ + jnp.square(g.astype(jnp.float32))[None]  # noqa: E731
      return jax.tree.map(square, total, gradients), None

    return jax.lax.scan(one, total, batch)[0]

  copied, split = PartitionSpec(), PartitionSpec(AXIS)
  mapped = jax.shard_map(add, mesh=mesh, in_specs=(split, copied, copied, split), out_specs=split)
  return jax.jit(mapped, donate_argnums=0)
