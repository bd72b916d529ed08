"""Chosen entries of the backbone's own leaves, trained in place: what GPS and SPT share.

    sparse   W' = W, but W'[place] = value[place]      value, index: variables of the method
    delta    W' = W, but W'[place] = W[place] + value[place]
    mask     W' = W, all of it trained, updates zero but at the chosen places

The first and the last are the same training where no method lies below, the second but for weight
decay, which pulls to the backbone's entries there and to zero here. In the sparse forms no
gradient, nothing of the optimizer's state and nothing that a step returns is of a kernel's size,
and of the W' of linear layers one at a time is there; in the mask form all are as large as the
kernels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from peft_jax.method import Method
from peft_jax.methods import sparse
from peft_jax.methods.axes import tokens
from peft_jax.tree import flat, nest

FORMS = ("auto", "entries", "kernel", "product", "mask")

# The share of a kernel's entries whose own gradients take as long as that of the whole kernel:
# measured on a CPU in float32 by benchmarks/entry_gradients.py, not yet on a GPU or TPU.
BREAK_EVEN = 1 / 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entries(Method):
  """Base of the methods whose variables are chosen entries.

  Variables at a site with n chosen entries of its kernel, in the sparse form:
    value: (r, c)   trained, r * c = n; index: the same shape, int32, frozen: flat places
  in the mask form, and in every form for entries of a leaf NAME other than a kernel:
    NAME_index: int32, frozen: flat places in the leaf, which is trained at these alone
  """

  folds_below: ClassVar[bool] = True  # it writes into the weights as those below have left them

  form: str = "auto"
  delta: bool = False

  def __post_init__(self):
    asker = type(self).__name__
    if self.form not in FORMS:
      raise ValueError(f"{asker}: form={self.form!r}; it must be one of {FORMS}.")
    if self.form == "mask" and self.delta:
      raise ValueError(f"{asker}: form='mask' trains the entries themselves, so there is no delta: "
                       "take delta=False, or another form.")

  def variables(self, kernel, index):
    """The variables of a site from its kernel and the flat places in it."""
    if self.form == "mask":
      return {"kernel_index": index}
    own = sparse.taken(kernel, index)
    return {"value": jnp.zeros_like(own) if self.delta else own, "index": index}

  def rows(self, site):
    """What a row of `index` is: see `methods.sparse`."""
    return "any"

  def derive(self, tree, table):
    leaves = flat(tree)
    return nest({path: leaf for path, leaf in leaves.items() if not path.endswith("_index")})

  def masked(self, tree):
    """{path in `params`: int32 flat places}: the leaves of which these places alone are trained."""
    leaves = flat(tree)
    return {path.removesuffix("_index"): leaf for path, leaf in leaves.items()
            if path.endswith("_index")}

  def values(self, kernel, v):
    """The entries of W', and by how much they differ from those of W."""
    own = sparse.taken(kernel, v["index"]).astype(v["value"].dtype)
    return (own + v["value"], v["value"]) if self.delta else (v["value"], v["value"] - own)

  def weights(self, site, params, v):
    value, _ = self.values(params["kernel"], v)
    return {**params, "kernel": sparse.written(params["kernel"], value, v["index"])}

  def call(self, site, v, params, layer, x, rng):
    if site.is_conv:
      return layer(self.weights(site, params, v), x)
    kernel, stop = params["kernel"], jax.lax.stop_gradient
    rows = (*self.values(kernel, v), v["index"])
    value, change, index = (jnp.reshape(array, (len(array), -1)) for array in rows)
    how, read = self.rows(site), tokens(x, site.fan_in)
    if self.form == "product":
      y = layer(params, x)
      read, outputs = read.astype(y.dtype), math.prod(site.fan_out)
      return y + jnp.reshape(sparse.product(change, read, index, outputs, how), y.shape)
    # The layer reads x and the values as constants: `tap` carries their gradients, and its own
    # autodiff that of the bias and of a kernel into which methods below are folded.
    new = sparse.written(sparse.after(kernel, stop(x)), stop(value), index)
    y = layer({**params, "kernel": new}, stop(x))
    how = how if self.by_entries(site, index.size) else "kernel"
    return y + sparse.tap(value, read, stop(kernel), index, y.shape, y.dtype, how)

  def by_entries(self, site, n):
    """Whether the gradient of a linear layer is formed for its n chosen entries alone."""
    if self.form != "auto":
      return self.form == "entries"
    share = 1 if self.rows(site) == "input" else BREAK_EVEN  # of whole rows it is one small product
    return n <= share * math.prod(site.fan_in) * math.prod(site.fan_out)


def filled(tuned, variables, name, places):
  """`variables` with the collection `name` holding `places` and the backbone's own values there.

  places: {path in `params`: int32 flat places}, as `peft_jax.selection` makes them.
  """
  method = next(m for m, _ in tuned.bound if m.collection == name)
  own, shapes, collection = flat(variables["params"]), flat(tuned.shapes[name]), {}
  for path, rows in places.items():
    site, _, leaf = path.rpartition("/")
    index = shapes.get(f"{path}_index", shapes.get(f"{site}/index"))
    index = jnp.reshape(jnp.asarray(rows, jnp.int32), index.shape)
    made = {f"{leaf}_index": index}
    if leaf == "kernel":
      made = method.variables
      for _ in tuned.table[site].stack:
        made = jax.vmap(made)
      made = made(own[path], index)
    collection |= {f"{site}/{name_}": value for name_, value in made.items()}
  made = variables | {name: nest(collection)}
  tuned.check(made)
  return made


def check(methods):
  """Raises ValueError for a mask form above a change of weights, which no file could say."""
  for i, method in enumerate(methods):
    below = next((m for m in methods[:i] if m.collection and m.weights), None)
    if getattr(method, "form", "") == "mask" and below:
      name = type(method).__name__
      raise ValueError(f"{name}: form='mask' trains the backbone's own weights, which "
                       f"{type(below).__name__} below it changes: put {name} first in `methods`, "
                       "or take another form.")


def filed(tuned):
  """The model as an adapter file has it: every mask form in the sparse one."""
  methods = [
    dataclasses.replace(m, form="auto") if getattr(m, "form", "") == "mask" else m
    for m in tuned.methods
  ]
  return dataclasses.replace(tuned, methods=tuple(methods))


def packed(tuned, variables, start):
  """Variables for `filed(tuned)` that say the same; start: parameters before training."""
  variables = dict(variables)
  for method, _ in tuned.bound:
    if getattr(method, "form", "") != "mask":
      continue
    sparse_form, own, base = dataclasses.replace(method, form="auto"), {}, flat(start)
    params = flat(variables["params"])
    for path, leaf in flat(variables[method.collection]).items():
      if path.endswith("/kernel_index"):
        kernel = path.removesuffix("_index")
        made = sparse_form.variables
        for _ in tuned.table[kernel.rpartition("/")[0]].stack:
          made = jax.vmap(made)
        made = made(params[kernel], leaf)
        own |= {f"{path.rpartition('/')[0]}/{name}": value for name, value in made.items()}
        params[kernel] = base[kernel]
      else:
        own[path] = leaf
    variables |= {"params": nest(params), method.collection: nest(own)}
  return variables
