"""From scores to the chosen entries of each kernel: by neuron, over one kernel or all, or whole.

Scores are matrices [fan_in, fan_out], a kernel's own flattened, and compared by absolute value.
Ties fall to the lowest input, in a kernel to the lowest flat place, over all to the first kernel.
"""

import jax
import jax.numpy as jnp
import numpy as np

# --- as many inputs of every neuron -----------------------------------------------------------


def top_per_neuron(scores, k):
  """int32 [min(k, fan_in), fan_out]: the inputs of each neuron with the largest |score|, falling.

  scores: [fan_in, fan_out]. GPS, section 3.2: k is the same for all layers; a layer with fewer
  inputs gives all of them. Raises ValueError for k < 1.
  """
  if k < 1:
    raise ValueError(f"k={k} inputs of a neuron cannot be chosen; it must be at least 1.")
  k = min(k, scores.shape[0])
  return jax.lax.top_k(jnp.abs(scores).T, k)[1].T.astype(jnp.int32)


def top_shared(scores, k):
  """int32 [min(k, fan_in), fan_out]: the inputs that most neurons have among their k, for all.

  NeuroAda's `appr`; the input that most name comes first, columns are equal.
  """
  own = top_per_neuron(scores, k)
  named = jnp.zeros(scores.shape[0], jnp.int32).at[own].add(1)
  return jnp.broadcast_to(jax.lax.top_k(named, len(own))[1][:, None], own.shape)


ROWS = {"neuron": top_per_neuron, "shared": top_shared}

# --- a budget of entries ----------------------------------------------------------------------


def top_of_net(scores, n):
  """{path: int32 flat places, rising}: the n largest |score| over all kernels.

  scores: {path: matrix}. A kernel none of whose entries is chosen has no place in the result.
  """
  every = np.concatenate([np.abs(np.asarray(leaf)).ravel() for leaf in scores.values()])
  chosen = np.sort(largest(every, max(n, 0)))
  found = _parts(chosen, {path: np.size(leaf) for path, leaf in scores.items()})
  return {path: places.astype(np.int32) for path, places in found.items() if len(places)}


def largest(values, n):
  """int64: the places of the n largest of a vector, falling; ties by rising place.

  Only these are sorted: sorting what a ViT-B/16 has takes 45 s, this 2 s. All of them where the
  vector is shorter than n. ValueError for a NaN.
  """
  if np.isnan(values).any():
    raise ValueError(f"{int(np.isnan(values).sum()):,} of {values.size:,} scores are not "
                     "numbers; are the weights those of a trained backbone?")
  n = min(n, values.size)
  if not n:
    return np.zeros(0, np.int64)
  least = np.partition(values, values.size - n)[values.size - n]
  above = np.flatnonzero(values > least)
  level = np.flatnonzero(values == least)[: n - above.size]
  chosen = np.sort(np.concatenate([above, level]))
  return chosen[np.argsort(-values[chosen], kind="stable")]


def top_channels(scores, n):
  """As `top_of_net`, of whole output channels, ranked over all kernels by their mean |score|: the
  longest start of that ranking that has at most n entries."""
  chosen = _parts(_start(*channels(scores), n), {p: np.shape(m)[1] for p, m in scores.items()})
  return {path: (np.arange(len(scores[path]))[:, None] * np.shape(scores[path])[1] + columns)
          .ravel().astype(np.int32) for path, columns in chosen.items() if len(columns)}


def top_matrices(scores, n):
  """As `top_channels`, of whole kernels."""
  chosen, paths = _start(*matrices(scores), n), list(scores)
  return {paths[i]: np.arange(np.size(scores[paths[i]]), dtype=np.int32) for i in chosen}


def channels(scores):
  """(mean |score|, number of entries) of every output channel of every kernel, in order."""
  means = [np.mean(np.abs(np.asarray(m)), axis=0, dtype=np.float64) for m in scores.values()]
  sizes = [np.repeat(*np.shape(matrix)) for matrix in scores.values()]
  return np.concatenate(means), np.concatenate(sizes)


def matrices(scores):
  """(mean |score|, number of entries) of every kernel, in order."""
  means = [np.mean(np.abs(np.asarray(m)), dtype=np.float64) for m in scores.values()]
  return np.array(means), np.array([np.size(matrix) for matrix in scores.values()])


def _start(means, sizes, n):
  """The units that fit into n entries, taken by falling mean until one does not; rising."""
  order = np.argsort(-means, kind="stable")
  return np.sort(order[np.cumsum(sizes[order]) <= n])


def _parts(chosen, sizes):
  """{path: those of `chosen` that are its own, counted from its first} of paths with `sizes`."""
  starts = np.cumsum([0, *sizes.values()])
  parts = np.split(chosen, np.searchsorted(chosen, starts[1:-1]))
  return {path: part - first for path, part, first in zip(sizes, parts, starts, strict=False)}
