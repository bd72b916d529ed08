"""From a method, a backbone and a task's images to what is trained: places in every kernel.

`places` are {site path: int32 [R, C]}, flat places in the kernel as `methods.sparse` reads them:
of a selection per neuron, or shared by all, row r holds the r-th input of each, else there is one
row.
"""

import dataclasses
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import models, safetensors
from peft_jax.keys import fold, key
from peft_jax.methods import entries, sparse
from peft_jax.models import stack_blocks, unstack_blocks
from peft_jax.selection import scores as scoring
from peft_jax.selection import top
from peft_jax.sites import select, sites
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned

FUSED = r"(.*/)(q|k|v)"  # one layer in the released code, three here


def needs_data(method):
  """Whether a method's scores are made from images."""
  return getattr(method, "score", None) in ("contrast", "cross_entropy")


def choose(method, model, params, table, config, batches=None, steps=0, show=None, scores=None):
  """{path: places} of a GPS method on a backbone's `params`, for every kernel it may choose from.

  Under a scan the paths are those of the unrolled model, encoder/blocks_0/...; `written` stacks
  what lies there.
  batches, steps, config, show: as `scores.gradient_sums` takes them, where the score needs data.
  scores: {kernel's path in params: array of its shape} of the caller's own, instead of `score`.
  Raises ValueError when no score differs from zero, as below a layer scale or head of zeros, and
  for scores that do not fit the kernels.
  """
  chosen = method.kept(table, select(table, method.sites, method.kinds, head=Tuned.head,
                                     asker="GPS"))
  if any(site.stack for site in chosen.values()):
    model, params, table, paths = unrolled(model, params, chosen)
    method = dataclasses.replace(method, sites=paths)
    return choose(method, model, params, table, config, batches, steps, show, scores)
  kernels = {path: f"{path}/kernel" for path in chosen}
  if scores is None and method.score == "file":
    scores = given_scores(method)
  if scores is None:
    scores = made(method, model, params, kernels, config, batches, steps, show)
  else:
    scores = fitting(scores, flat(params), kernels.values())
  matrices = {path: jnp.reshape(scores[kernel], (math.prod(chosen[path].fan_in), -1))
              for path, kernel in kernels.items()}
  if not all(bool(jnp.isfinite(matrix).all()) for matrix in matrices.values()):
    raise ValueError("GPS: some scores are not finite, so nothing can be chosen by them; are the "
                     "weights those of a trained backbone?")
  if not any(float(jnp.max(jnp.abs(matrix))) for matrix in matrices.values()):
    raise ValueError("GPS: every score is zero, so nothing can be chosen by it; are the weights "
                     "those of a trained backbone?")
  found = by_level(method.level, matrices, method.k)
  if method.row_permutation:  # of the inputs; each place stays in its neuron's column
    start = key(config.seed, "row permutation")
    for path, rows in found.items():
      inputs = jax.random.permutation(fold(start, path), rows // rows.shape[1], axis=1)
      found[path] = sparse.places(inputs, rows.shape[1])
  return found


def unrolled(model, params, chosen):
  """(the model without its scan, its parameters, its table, the paths of the `chosen` sites)."""
  paths = flat(unstack_blocks(nest({p: np.zeros(site.stack) for p, site in chosen.items()})))
  model = model.clone(loop="remat" if "remat" in model.loop else "python")
  return model, unstack_blocks(params), sites(model, models.images(model)), tuple(paths)


def made(method, model, params, kernels, config, batches, steps, show):
  """{kernel's path in `params`: its scores} of `method.score`; kernels: {site path: that}."""
  own = flat(params)
  if method.score == "magnitude":
    return own
  if method.score == "random":
    start = key(config.seed, "random selection")
    return {kernel: 1 + jax.random.uniform(fold(start, path), own[kernel].shape)
            for path, kernel in kernels.items()}
  return scoring.gradient_sums(model, params, tuple(kernels.values()), batches, steps, config,
                               method.score, method.temperature, show, method.drop_path)


def given_scores(method):
  """{path in `params`: array} of the file that a method with score="file" names."""
  if not method.scores:
    name = type(method).__name__
    raise ValueError(f"{name}: score='file' needs {name.lower()}.scores=FILE, or the scores "
                     "themselves.")
  return safetensors.read(method.scores)[0]


def fitting(scores, params, leaves, asker="GPS"):
  """Given scores {path in `params`: array} as float32, unrolled; ValueError where they do not fit.

  leaves: the flat paths in `params` of those that are needed; asker: named in errors.
  """
  scores, found = flat(unstack_blocks(nest(dict(scores)))), {}
  for leaf in leaves:
    if leaf not in scores:
      raise ValueError(f"{asker}: the given scores have none for {leaf!r}; there are {len(scores)} "
                       f"arrays, and each of the {len(leaves)} leaves needs one under its path.")
    given, shape = np.asarray(scores[leaf]), params[leaf].shape
    if given.shape != shape or not jnp.issubdtype(given.dtype, jnp.floating):
      raise ValueError(f"{asker}: the given scores for {leaf!r} are {given.dtype}{[*given.shape]}; "
                       f"the leaf needs floating point numbers {[*shape]}.")
    found[leaf] = given.astype(np.float32)
    if not np.isfinite(found[leaf]).all():
      raise ValueError(f"{asker}: the given scores for {leaf!r} hold NaN or infinite values; "
                       "nothing can be chosen by them.")
  return found


def by_level(level, matrices, k):
  """{path: places} of scores {path: matrix [fan_in, fan_out]}; level, k: as GPS has them."""
  if level in top.ROWS:
    return {path: sparse.places(top.ROWS[level](matrix, k), matrix.shape[1])
            for path, matrix in matrices.items()}
  return {path: places[None] for path, places in BY_BUDGET[level](matrices, k).items()}


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
  return top.top_of_net(matrices, budget(matrices, k))


def by_channel(matrices, k):
  return top.top_channels(matrices, enough(matrices, k, "channel", *top.channels(matrices)))


def by_matrix(matrices, k):
  return top.top_matrices(matrices, enough(matrices, k, "matrix", *top.matrices(matrices)))


BY_BUDGET = {"layer": by_layer, "net": by_net, "channel": by_channel, "matrix": by_matrix}


def budget(matrices, k):
  """As many entries as k inputs of every neuron are."""
  return sum(min(k, matrix.shape[0]) * matrix.shape[1] for matrix in matrices.values())


def enough(matrices, k, level, means, sizes):
  """`budget`; ValueError where the first of the units ranked by `means` does not fit into it."""
  n, first = budget(matrices, k), int(sizes[np.argmax(means)])
  if n < first:
    least = next(more for more in itertools.count(k) if budget(matrices, more) >= first)
    raise ValueError(f"GPS: k={k} is a budget of {n} entries, and the {level} with the largest "
                     f"scores has {first}: level={level!r} needs k={least} or more here.")
  return n


def told(method, places):
  """The method knowing how many entries of each kernel `places` holds."""
  if method.level in top.ROWS:
    return method
  counts = tuple(f"{re.escape(path)}={np.size(rows)}" for path, rows in places.items())
  return dataclasses.replace(method, chosen=counts)


def written(tuned, variables, name, places):
  """`variables` with the places and the backbone's own values in the collection `name`."""
  kernels = {f"{path}/kernel": np.asarray(rows) for path, rows in places.items()}
  if any(site.stack for site in tuned.table.values()):
    kernels = flat(stack_blocks(nest(kernels)))
  return entries.filled(tuned, variables, name, kernels)
