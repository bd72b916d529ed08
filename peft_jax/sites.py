"""Sites: the places in a Linen model where a tuning method can act.

The table of sites is read off a shape-only trace of the unedited model, so it knows every
module call, under `nn.remat` and `nn.scan` too, and costs no FLOP and no memory.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re

import flax.linen as nn
import jax

from peft_jax.tree import flat

LINEAR = (nn.Dense, nn.DenseGeneral, nn.Conv)
NORM = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # BatchNorm is absent: its statistics are state


class NoSiteError(ValueError):
  """A method selected no place in the model, or a place that the model never runs."""


@dataclasses.dataclass(frozen=True)
class Site:
  """One module call of the backbone, described by shapes only.

  path: module path, "encoder/blocks_0/attn/q"; the model itself is "".
  kind: Linen class of the module.
  params: ((name, shape), ...) of the module's own parameters, without stacked axes.
  stack: leading axes that a lifted loop gives every variable here: () or (layers,).
  x, y: shapes of the first input and of the output, inside any lifted loop.
  fan_in, fan_out: kernel shape = fan_in + fan_out. Dense (768,) + (3072,); DenseGeneral
    (768,) + (12, 64); Conv (7, 7, in/groups) + (out,); a norm () + (channels,); else () + ().
  groups: feature groups of a convolution, 1 elsewhere.
  """

  path: str
  kind: type
  params: tuple[tuple[str, tuple[int, ...]], ...]
  stack: tuple[int, ...]
  x: tuple[int, ...]
  y: tuple[int, ...]
  fan_in: tuple[int, ...] = ()
  fan_out: tuple[int, ...] = ()
  groups: int = 1

  @property
  def name(self):
    """The last part of the path: "q"."""
    return self.path.rpartition("/")[2]

  @property
  def parent(self):
    """The path of the module that holds this one: "encoder/blocks_0/attn"."""
    return self.path.rpartition("/")[0]

  @property
  def is_conv(self):
    return issubclass(self.kind, nn.Conv)

  @property
  def inputs(self):
    """Number of input features a per-feature scale needs (a convolution's whole channel axis)."""
    return self.fan_in[-1] * self.groups if self.is_conv else math.prod(self.fan_in)

  def __str__(self):
    stack = f"{list(self.stack)} " if self.stack else ""
    return f"{self.path}  {self.kind.__name__}  {stack}{self.x} -> {self.y}"


def _fans(module, kernel):
  """(fan_in, fan_out, groups) of a module, empty where methods cannot act on it."""
  if isinstance(module, nn.Conv) and kernel is not None:
    return kernel[:-1], kernel[-1:], module.feature_group_count
  if isinstance(module, nn.Dense) and kernel is not None:
    return kernel[:1], kernel[1:], 1
  if isinstance(module, nn.DenseGeneral) and kernel is not None:
    features = module.features if isinstance(module.features, tuple) else (module.features,)
    axes = module.axis if isinstance(module.axis, tuple) else (module.axis,)
    if module.batch_dims or sorted(axes) != list(range(-len(axes), 0)):
      return (), (), 1
    return kernel[: -len(features)], kernel[-len(features) :], 1
  return (), (), 1


def sites(model, *args, **kwargs):
  """{path: Site} of every module call of `model(*args, **kwargs)`, in call order.

  args: arrays or `jax.ShapeDtypeStruct`s, the model's inputs. Nothing is computed.
  A module called several times has one entry, with the shapes of its last call.
  """
  seen = {}

  def spy(next_fun, inputs, named, context):
    y = next_fun(*inputs, **named)
    # Lifted transforms add wrapper calls (`<lambda>`, no parameters): only __call__ counts.
    if context.method_name == "__call__" and inputs and hasattr(inputs[0], "shape"):
      own = {
        name: value.shape
        for name, value in context.module.variables.get("params", {}).items()
        if hasattr(value, "shape")
      }
      y_shape = getattr(y, "shape", ())
      seen["/".join(context.module.path)] = (context.module, own, inputs[0].shape, y_shape)
    return y

  def init(*arrays):
    key = jax.random.key(0)
    return model.init({"params": key, "dropout": key}, *arrays, **kwargs)

  with nn.intercept_methods(spy):
    outer = jax.eval_shape(init, *args).get("params", {})
  outer = {path: value.shape for path, value in flat(outer).items()}

  table = {}
  for path, (module, own, x, y) in seen.items():
    stack = ()
    for name, shape in own.items():
      full = outer[f"{path}/{name}" if path else name]
      stack = full[: len(full) - len(shape)]
    if isinstance(module, NORM) and own:
      fans = ((), next(iter(own.values())), 1)
    else:
      fans = _fans(module, own.get("kernel"))
    table[path] = Site(path, type(module), tuple(own.items()), stack, tuple(x), tuple(y), *fans)
  return table


def is_head(path, head):
  """Whether a module path lies in the head, named by the regular expression `head`."""
  return bool(head) and re.fullmatch(rf"({head})(/.*)?", path) is not None


def select(table, pattern, kinds, *, head="", asker="this method"):
  """The sites that `pattern` names and whose kind is among `kinds`, in call order.

  pattern: a regular expression for the whole path, or a tuple of exact paths.
  head: regular expression of the head's modules; a pattern never selects these (the head is
    trained itself), an exact path may.
  Raises NoSiteError when nothing matches, or an exact path is absent, listing near sites.
  """
  usable = {
    path: site
    for path, site in table.items()
    if path and issubclass(site.kind, kinds) and (site.fan_out or not issubclass(site.kind, LINEAR))
  }
  if isinstance(pattern, str):
    try:
      matcher = re.compile(pattern)
    except re.error as error:
      raise NoSiteError(f"{asker}: {pattern!r} is not a regular expression ({error}).") from None
    chosen = {p: s for p, s in usable.items() if matcher.fullmatch(p) and not is_head(p, head)}
    wrong = [] if chosen else [pattern]
  else:
    chosen = {path: site for path, site in usable.items() if path in pattern}
    wrong = [path for path in pattern if path not in usable] or ([] if chosen else [pattern])
  if wrong:
    near = difflib.get_close_matches(str(wrong[0]), usable, n=4, cutoff=0.3) or list(usable)[:4]
    listed = "\n".join(f"  {usable[path]}" for path in near)
    what = "pattern" if isinstance(pattern, str) else "path"
    names = ", ".join(dict.fromkeys(kind.__name__ for kind in kinds))
    raise NoSiteError(
      f"{asker}: the {what} {wrong[0]!r} selects none of the {len(usable)} sites of kind {names}. "
      f"Patterns match whole paths; near ones are\n{listed}"
    )
  return chosen
