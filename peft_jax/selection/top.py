"""From scores to the chosen entries of each kernel: by neuron, or over one kernel or all.

Scores are matrices [fan_in, fan_out], a kernel's own flattened, and compared by absolute value.
Ties fall to the lowest input, in a kernel to the lowest flat place, over all to the first kernel.
"""

import jax
import jax.numpy as jnp
import numpy as np


def top_per_neuron(scores, k):
  """int32 [min(k, fan_in), fan_out]: the inputs of each neuron with the largest |score|, falling.

  scores: [fan_in, fan_out]. GPS, section 3.2: k is the same for all layers; a layer with fewer
  inputs gives all of them. Raises ValueError for k < 1.
  """
  if k < 1:
    raise ValueError(f"k={k} inputs of a neuron cannot be chosen; it must be at least 1.")
  k = min(k, scores.shape[0])
  return jax.lax.top_k(jnp.abs(scores).T, k)[1].T.astype(jnp.int32)


def random_per_neuron(key, fan_in, fan_out, k):
  """int32 [min(k, fan_in), fan_out]: inputs drawn uniformly, without replacement, per neuron."""
  return top_per_neuron(jax.random.uniform(key, (fan_in, fan_out)) + 1.0, k)


def top_of_net(scores, n):
  """{path: int32 flat places, rising}: the n largest |score| over all kernels.

  scores: {path: matrix}. A kernel none of whose entries is chosen has no place in the result.
  """
  paths = list(scores)
  sizes = [np.size(scores[path]) for path in paths]
  every = np.concatenate([np.abs(np.asarray(scores[path])).ravel() for path in paths])
  chosen = np.sort(np.argsort(-every, kind="stable")[: max(n, 0)])
  starts = np.cumsum([0, *sizes])
  parts = np.split(chosen, np.searchsorted(chosen, starts[1:-1]))
  found = {path: (part - first).astype(np.int32)
           for path, part, first in zip(paths, parts, starts[:-1], strict=True)}
  return {path: places for path, places in found.items() if len(places)}
