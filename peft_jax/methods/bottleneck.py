"""What Adapter and AdaptFormer share: the bottleneck, and the modules that can have one.

    bottleneck(x) = drop(act(x D + d)) U + u        D [inputs, width], U [width, outputs]
"""

import math

import jax
import jax.numpy as jnp

from peft_jax.methods.axes import along, narrowed, tokens
from peft_jax.methods.dropout import dropped

# The MLP's residual branch; a ConvNeXt's block is one as a whole.
BRANCHES = r"(.*/)?(mlp|blocks_\d+)"


def counted(pattern, chosen):
  """The chosen sites that get variables: all that are named one by one; of those that a regular
  expression selects the innermost, so that a block which holds a selected `mlp` gets none.
  """
  if not isinstance(pattern, str):
    return chosen
  outer = {path[:i] for path in chosen for i, letter in enumerate(path) if letter == "/"}
  return {path: site for path, site in chosen.items() if path not in outer}


def ends(asker, site, parallel):
  """(the axes a bottleneck at `site` reads, those it adds to): sizes of the last axes.

  parallel: it reads the module's input instead of its output. Raises ValueError, in the name of
  `asker`, where the module returns no array or does not go from token to token.
  """
  linear = site.fan_in and not site.is_conv
  into, out = (site.fan_in if linear else site.x[-1:]), (site.fan_out or site.y[-1:])
  if not out:
    raise ValueError(
      f"{asker}: {site.path} ({site.kind.__name__}) does not return one array [..., channels], so "
      "there are no channels to adapt; select other sites."
    )
  if not parallel:
    return out, out
  if site.x[: -len(into)] != site.y[: -len(out)]:
    raise ValueError(
      f"{asker}: {site.path} turns {site.x} into {site.y}, so what is read at its input does not "
      "fit its output token by token; select other sites, or adapt the output."
    )
  return into, out


def variables(key, into, width, out, start):
  """{down, down_bias, up, up_bias}; start: the initialisers of down and up. The biases are zero."""
  inputs, outputs = math.prod(into), math.prod(out)
  down, up = jax.random.split(key)
  return {
    "down": start[0](down, (inputs, width)),
    "down_bias": jnp.zeros((width,)),
    "up": start[1](up, (width, outputs)),
    "up_bias": jnp.zeros((outputs,)),
  }


def bottleneck(v, x, into, act, rate, rng):
  """The bottleneck of x [..., *into] as tokens [T, outputs] of x's type."""
  v = {name: leaf.astype(x.dtype) for name, leaf in v.items()}
  low = narrowed(tokens(x, into), v["down"])
  low = dropped(act(low + along(v["down_bias"], low)), rate, rng)
  return low @ v["up"] + along(v["up_bias"], low)
