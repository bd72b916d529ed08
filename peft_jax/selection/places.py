"""From a method, a backbone and a task's images to what is trained: places in every kernel.

`places` are {site path: int32 [R, C]}, flat places in the kernel as `methods.sparse` reads them:
of a selection per neuron row r holds the r-th input of each neuron, else there is one row.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.keys import fold, key
from peft_jax.methods import entries, sparse
from peft_jax.selection import scores as scoring
from peft_jax.selection import top
from peft_jax.sites import select
from peft_jax.tree import flat
from peft_jax.tuned import Tuned

FUSED = r"(.*/)(q|k|v)"  # one layer in the released code, three here


def needs_data(method):
  """Whether a method's scores are made from images."""
  return getattr(method, "score", None) in ("contrast", "cross_entropy")


def choose(method, model, params, table, config, batches=None, steps=0, show=None):
  """{path: places} of a GPS method on a backbone's `params`, for every kernel it may choose from.

  batches, steps, config, show: as `scores.gradient_sums` takes them, where the score needs data.
  Raises ValueError when no score differs from zero, as below a layer scale or head of zeros.
  """
  chosen = select(table, method.sites, method.kinds, head=Tuned.head, asker="GPS")
  own = flat(params)
  if scanned := next((path for path, site in chosen.items() if site.stack), None):
    raise ValueError(f"GPS chooses from one kernel a layer, but a scan holds all at {scanned!r}: "
                     "take model.loop='python' or 'remat'.")
  kernels = {path: f"{path}/kernel" for path in chosen}
  if method.score == "magnitude":
    found = {path: own[kernel] for path, kernel in kernels.items()}
  elif method.score == "random":
    start = key(config.seed, "random selection")
    found = {path: 1 + jax.random.uniform(fold(start, path), own[kernel].shape)
             for path, kernel in kernels.items()}
  else:
    sums = scoring.gradient_sums(model, params, tuple(kernels.values()), batches, steps, config,
                                 method.score, method.temperature, show)
    found = {path: sums[kernel] for path, kernel in kernels.items()}
  matrices = {path: jnp.reshape(found[path], (math.prod(site.fan_in), -1))
              for path, site in chosen.items()}
  if not any(float(jnp.max(jnp.abs(matrix))) for matrix in matrices.values()):
    raise ValueError("GPS: every score is zero, so nothing can be chosen by it; are the weights "
                     "those of a trained backbone?")
  return BY_LEVEL[method.level](matrices, method.k)


def by_neuron(matrices, k):
  return {path: sparse.places(top.top_per_neuron(matrix, k), matrix.shape[1])
          for path, matrix in matrices.items()}


def by_layer(matrices, k):
  """Of each layer as many entries as a selection per neuron has; q, k and v are one layer."""
  layers = {}
  for path in matrices:
    fused = re.fullmatch(FUSED, path)
    layers.setdefault(f"{fused[1]}qkv" if fused else path, []).append(path)
  found = {}
  for paths in layers.values():
    found |= by_net({path: matrices[path] for path in paths}, k)
  return found


def by_net(matrices, k):
  n = sum(min(k, matrix.shape[0]) * matrix.shape[1] for matrix in matrices.values())
  return {path: places[None] for path, places in top.top_of_net(matrices, n).items()}


BY_LEVEL = {"neuron": by_neuron, "layer": by_layer, "net": by_net}


def told(method, places):
  """The method knowing how many entries of each kernel `places` holds."""
  if method.level == "neuron":
    return method
  counts = tuple(f"{re.escape(path)}={np.size(rows)}" for path, rows in places.items())
  return dataclasses.replace(method, chosen=counts)


def written(tuned, variables, name, places):
  """`variables` with the places and the backbone's own values in the collection `name`."""
  kernels = {f"{path}/kernel": rows for path, rows in places.items()}
  return entries.filled(tuned, variables, name, kernels)
