"""Chosen entries of the backbone's own leaves, trained in place: what GPS and SPT share.

    sparse   W' = W, but W'[place] = value[place]      value, index: variables of the method
    mask     W' = W, all of it trained, updates zero but at the chosen places

Both are the same training. In the sparse form nothing of a kernel's size is formed, stored or
returned by a step; in the mask form the gradient, the optimizer's state and what a step returns are
as large as the kernels.
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

FORMS = ("auto", "entries", "kernel", "mask")

# The share of a kernel's entries whose own gradients take as long as that of the whole kernel:
# measured on a CPU in float32 by benchmarks/entry_gradients.py, not yet on a GPU or TPU.
BREAK_EVEN = 1 / 64


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

  def __post_init__(self):
    if self.form not in FORMS:
      raise ValueError(f"{type(self).__name__}: form={self.form!r}; it must be one of {FORMS}.")

  def variables(self, kernel, index):
    """The variables of a site from its kernel and the flat places in it."""
    if self.form == "mask":
      return {"kernel_index": index}
    return {"value": sparse.taken(kernel, index), "index": index}

  def is_per_neuron(self, site):
    """Whether column c of `index` holds entries of neuron c."""
    return False

  def derive(self, tree, table):
    leaves = flat(tree)
    return nest({path: leaf for path, leaf in leaves.items() if not path.endswith("_index")})

  def masked(self, tree):
    """{path in `params`: int32 flat places}: the leaves of which these places alone are trained."""
    leaves = flat(tree)
    return {path.removesuffix("_index"): leaf for path, leaf in leaves.items()
            if path.endswith("_index")}

  def weights(self, site, params, v):
    return {**params, "kernel": sparse.written(params["kernel"], v["value"], v["index"])}

  def call(self, site, v, params, layer, x, rng):
    if site.is_conv or not self.by_entries(site, v["index"].size):
      return layer(self.weights(site, params, v), x)
    # The layer reads the values as constants, so that no gradient of its kernel is formed.
    y = layer(self.weights(site, params, {**v, "value": jax.lax.stop_gradient(v["value"])}), x)
    value, index = (jnp.reshape(v[name], (len(v[name]), -1)) for name in ("value", "index"))
    x = tokens(jax.lax.stop_gradient(x), site.fan_in)
    return y + sparse.tap(value, index, x, y.shape, y.dtype, self.is_per_neuron(site))

  def by_entries(self, site, n):
    """Whether the gradient of a linear layer is formed for its n chosen entries alone."""
    if self.form != "auto":
      return self.form == "entries"
    return n <= BREAK_EVEN * math.prod(site.fan_in) * math.prod(site.fan_out)


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
        made = sparse_form.variables(params[kernel], leaf)
        own |= {f"{path.rpartition('/')[0]}/{name}": value for name, value in made.items()}
        params[kernel] = base[kernel]
      else:
        own[path] = leaf
    variables |= {"params": nest(params), method.collection: nest(own)}
  return variables
