"""How the devices share a step: batches are split over them, everything else is copied to all.

"jit" compiles one program over a mesh of all devices; "pmap" runs the same step on each device
and averages by name. Both take and give the same values; state and frozen variables must have
been placed by `Parallel.place`, batches by `feed`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Parallel:
  """how: "jit" or "pmap"; devices: those that share a batch."""

  how: str
  devices: tuple

  @functools.cached_property
  def mesh(self):
    return Mesh(np.asarray(self.devices), (AXIS,), axis_types=(AxisType.Auto,))

  @property
  def copied(self):
    """The sharding of what every device holds in full."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def split(self):
    """The sharding of arrays whose first axis is divided over the devices."""
    return NamedSharding(self.mesh, PartitionSpec(AXIS))

  @property
  def axis(self):
    """The name a step averages over; None under jit, which needs none."""
    return AXIS if self.how == "pmap" else None

  def place(self, tree):
    """`tree` (arrays of the host) on all devices, as `step` takes it."""
    if self.how == "jit":
      return jax.device_put(tree, self.copied)
    n = len(self.devices)
    return jax.tree.map(
      lambda x: jax.device_put(np.broadcast_to(np.asarray(x), (n, *np.shape(x))), self.split), tree
    )

  def whole(self, tree):
    """What `place` placed, as arrays that every device holds in full."""
    return tree if self.how == "jit" else _first(self.copied)(tree)

  def step(self, step, options=None):
    """`step(state, frozen, batch) -> state` compiled; the state passed in is used up.

    options: of the compiler, under jit; pmap takes none.
    """
    if self.how == "jit":
      return jax.jit(
        step,
        in_shardings=(self.copied, self.copied, self.split),
        out_shardings=self.copied,
        donate_argnums=0,
        compiler_options=options,
      )
    mapped = jax.pmap(step, axis_name=AXIS, devices=list(self.devices), donate_argnums=0)
    return lambda state, frozen, batch: mapped(state, frozen, self._pieces(batch))

  @functools.cached_property
  def _pieces(self):
    """[batch, ...] as [devices, batch per device, ...]; every piece stays where it is."""
    n = len(self.devices)
    cut = lambda x: jnp.reshape(x, (n, x.shape[0] // n, *x.shape[1:]))  # noqa: E731
    return jax.jit(
      lambda batch: jax.tree.map(cut, batch), in_shardings=self.split, out_shardings=self.split
    )


@functools.cache
def _first(sharding):
  return jax.jit(lambda tree: jax.tree.map(lambda x: x[0], tree), out_shardings=sharding)


def parallel(how, devices=None):
  """All devices, or the given ones, working as `how` says."""
  return Parallel(how, tuple(jax.devices() if devices is None else devices))


def check_batch(batch_size, devices):
  """Raises ValueError unless every device gets the same number of images."""
  n = len(devices)
  if batch_size % n:
    below, above = batch_size // n * n, -(-batch_size // n) * n
    near = f"{below} or {above}" if below else f"{above}"
    raise ValueError(f"batch_size={batch_size} does not divide over {n} devices; take {near}.")
