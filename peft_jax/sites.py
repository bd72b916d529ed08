"""Sites: the places in a Linen model where a tuning method can act.

The table is read off a shape-only trace of the unedited model, `nn.remat` and `nn.scan` included.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
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
  params: ((name, shape), ...) of the module's own parameters, without stacked axes.
  stack: leading axes that a lifted loop gives every variable here: () or (layers,).
  x, y: shapes of the first input and of the output, inside any lifted loop.
  fan_in, fan_out: kernel shape = fan_in + fan_out. Dense (768,) + (3072,); DenseGeneral
    (768,) + (12, 64); Conv (7, 7, in/groups) + (out,); a norm () + (channels,); else () + ().
  module: the module itself, without variables and outside the model.
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
  module: nn.Module | None = dataclasses.field(default=None, compare=False, repr=False)

  @property
  def is_conv(self):
    return issubclass(self.kind, nn.Conv)

  @property
  def inputs(self):  # a convolution's whole channel axis
    return self.fan_in[-1] * self.groups if self.is_conv else math.prod(self.fan_in)

  def __str__(self):
    return f"{self.path}  {self.kind.__name__}  {self.x} -> {self.y}"


def _fans(module, own):  # fan_in, fan_out, groups; () and () where no method can act
  kernel = own.get("kernel")
  if isinstance(module, NORM) and own and getattr(module, "feature_axes", -1) in (-1, (-1,)):
    return (), next(iter(own.values())), 1
  if isinstance(module, nn.Conv):
    return kernel[:-1], kernel[-1:], module.feature_group_count
  if isinstance(module, nn.Dense):
    return kernel[:1], kernel[1:], 1
  if isinstance(module, nn.DenseGeneral):
    features, axes = (v if isinstance(v, tuple) else (v,) for v in (module.features, module.axis))
    if not module.batch_dims and sorted(axes) == list(range(-len(axes), 0)):
      return kernel[: -len(features)], kernel[-len(features) :], 1
  return (), (), 1


def sites(model, *args, **kwargs):
  """{path: Site} of every module call of `model(*args, **kwargs)`, in call order.

  args: arrays or `jax.ShapeDtypeStruct`s. Of several calls of a module the last one counts.
  """
  seen = {}

  def spy(next_fun, inputs, named, context):
    y = next_fun(*inputs, **named)
    # Lifted transforms add wrapper calls (`<lambda>`, no parameters): only __call__ counts.
    if context.method_name == "__call__" and inputs and hasattr(inputs[0], "shape"):
      own = {n: v.shape for n, v in flat(context.module.variables.get("params", {})).items()}
      shapes = (tuple(inputs[0].shape), tuple(getattr(y, "shape", ())))
      seen["/".join(context.module.path)] = (context.module.clone(parent=None), own, *shapes)
    return y

  keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
  init = functools.partial(model.init, keys, **kwargs)
  with nn.intercept_methods(spy):
    outer = flat(jax.eval_shape(init, *args).get("params", {}))
  table = {}
  for path, (module, own, x, y) in seen.items():
    stack = ()
    for name, shape in own.items():
      full = outer[f"{path}/{name}".lstrip("/")].shape
      stack = full[: len(full) - len(shape)]
      if full != stack + shape:
        raise NoSiteError(f"{path}/{name} {full} is not stacked on axis 0 of {shape}: scan it so.")
    direct = {name: shape for name, shape in own.items() if "/" not in name}
    shapes = (tuple(direct.items()), stack, x, y, *_fans(module, direct))
    table[path] = Site(path, type(module), *shapes, module)
  return table


def is_head(path, head):
  """Whether a module path lies in the head, named by the regular expression `head`."""
  return bool(head) and re.fullmatch(rf"({head})(/.*)?", path) is not None


def select(table, pattern, kinds, *, head="", asker="this method"):
  """The sites that `pattern` names and whose kind is among `kinds`, in call order.

  pattern: exact paths, or a regular expression for whole paths, which never selects the `head`.
  Raises NoSiteError when nothing matches or an exact path is absent, listing near sites.
  """
  usable = {path: site for path, site in table.items() if path and issubclass(site.kind, kinds)}
  bare = {p for p, s in usable.items() if issubclass(s.kind, LINEAR + NORM) and not s.fan_out}
  usable = {path: site for path, site in usable.items() if path not in bare}
  if isinstance(pattern, str):
    try:
      matcher = re.compile(pattern)
    except re.error as error:
      raise NoSiteError(f"{asker}: {pattern!r} is not a regular expression ({error}).") from None
    chosen = {p: s for p, s in usable.items() if matcher.fullmatch(p) and not is_head(p, head)}
    wrong = [] if chosen else [pattern]
  else:
    chosen = {p: s for p, s in usable.items() if p in pattern}
    wrong = [p for p in pattern if p not in usable] or ([] if chosen else [pattern])
  if wrong:
    near = difflib.get_close_matches(str(wrong[0]), usable, 4, 0.3) or list(usable)[:4]
    raise NoSiteError(
      f"{asker}: {wrong[0]!r} selects none of the {len(usable)} sites of kind "
      f"{', '.join(kind.__name__ for kind in kinds)}. Whole paths must match; near ones are\n"
      + "\n".join(f"  {usable[path]}" for path in near)
    )
  return chosen
