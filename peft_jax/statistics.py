"""What batch norms keep beside their parameters: the collection "batch_stats"."""

import flax.linen as nn
import jax.numpy as jnp

from peft_jax.tree import nest

START = {"mean": jnp.zeros, "var": jnp.ones}


def start(table):
  """{"batch_stats": tree}, as the batch norms of `sites` have them at first; {} without any."""
  tree = {
    f"{path}/{name}": make(site.stack + site.y[-1:], jnp.float32)
    for path, site in table.items()
    if issubclass(site.kind, nn.BatchNorm)
    for name, make in START.items()
  }
  return {"batch_stats": nest(tree)} if tree else {}
