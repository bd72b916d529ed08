"""One layer of every kind, and the law that a method's three forms agree on it."""

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import models
from peft_jax.method import Method
from peft_jax.sites import LINEAR, NORM, sites
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned

conv = functools.partial(nn.Conv, kernel_size=(3, 3))

# name: (constructor, shape of x, number of input features)
LAYERS = {
  "dense": (functools.partial(nn.Dense, 5), (2, 3, 6), 6),
  "split_heads": (functools.partial(nn.DenseGeneral, (2, 4)), (2, 3, 6), 6),
  "join_heads": (functools.partial(nn.DenseGeneral, 5, axis=(-2, -1)), (2, 3, 2, 4), 8),
  "conv": (functools.partial(conv, 4), (2, 5, 5, 6), 6),
  "strided": (functools.partial(conv, 4, strides=2, padding="VALID"), (2, 7, 7, 6), 6),
  "dilated": (functools.partial(conv, 4, kernel_dilation=2), (2, 7, 7, 6), 6),
  "grouped": (functools.partial(conv, 6, feature_group_count=2), (2, 5, 5, 4), 4),
  "depthwise": (functools.partial(conv, 6, feature_group_count=6), (2, 5, 5, 6), 6),
  "multiplied": (functools.partial(conv, 12, feature_group_count=6), (2, 5, 5, 6), 6),
}
UNGROUPED = {n: layer for n, layer in LAYERS.items()
             if n not in ("grouped", "depthwise", "multiplied")}
NORMS = {
  "layer_norm": (nn.LayerNorm, (2, 3, 6), 6),
  "group_norm": (functools.partial(nn.GroupNorm, 2), (2, 3, 3, 6), 6),
}


class One(nn.Module):
  """`layer` on x; `before` runs beside it, so that its output scale can feed the layer's input."""

  make: Callable
  inputs: int = 1

  @nn.compact
  def __call__(self, x):
    nn.Dense(self.inputs, name="before")(jnp.ones((1, 2)))
    return self.make(name="layer")(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folded(Method):
  """Changes nothing, but as a change of weights, so that all methods before it are folded."""

  kinds = LINEAR + NORM

  collection: str = "folded"

  def init(self, site, key, params):
    return {"a": jnp.zeros(())}

  def weights(self, site, params, v):
    return params


def perturbed(tree, seed):
  rng = np.random.default_rng(seed)

  def move(leaf):
    if np.issubdtype(leaf.dtype, np.integer):  # places in a kernel
      return jnp.asarray(leaf)
    return jnp.asarray(leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32))

  return jax.tree.map(move, jax.device_get(tree))


def drawn(shapes, seed):
  """Random values for a tree of shapes, without compiling its initialisers."""
  return perturbed(jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes), seed)


def attach(method, make, shape, inputs):
  """(tuned, variables, x), all of them random."""
  x = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
  model = One(make, inputs)
  params = drawn(jax.eval_shape(model.init, jax.random.key(0), x)["params"], 1)
  tuned = Tuned(model, (method,), sites(model, x))
  return tuned, {"params": params, **perturbed(tuned.init(jax.random.key(1), params), 2)}, x


def assert_forms_agree(method, layer):
  """call == the layer with the folded weights == the layer with the merged weights."""
  tuned, variables, x = attach(method, *layer)
  y = tuned.apply(variables, x)
  base = tuned.model.apply({"params": variables["params"]}, x)
  assert y.shape == base.shape and float(jnp.max(jnp.abs(y - base))) > 1e-2
  merged = tuned.model.apply({"params": tuned.merge(variables)}, x)
  both = Tuned(tuned.model, (method, Folded(sites=method.sites)), tuned.table)
  start = both.init(jax.random.key(0), variables["params"])
  folded = both.apply({**variables, **start, **own(variables)}, x)
  for other in (merged, folded):
    np.testing.assert_allclose(other, y, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(y))))


def own(variables):
  return {collection: tree for collection, tree in variables.items() if collection != "params"}


@functools.cache
def by_shapes(name):
  """A model of 100 classes: (model, params, table)."""
  model = models.create(name, num_classes=100)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  return model, params, sites(model, images)


def trained(method, name="vit_base_patch16_224"):
  """{path: size} of what is trained beside the head, whose size is checked."""
  model, params, table = by_shapes(name)
  tuned = Tuned(model, (method,), table)
  made = jax.eval_shape(tuned.init, jax.random.key(0), params)
  train, _ = tuned.split({"params": params, **made})
  sizes = {path: math.prod(leaf.shape) for path, leaf in flat(train).items()}
  head = {path: sizes.pop(path) for path in list(sizes) if path.startswith("params/head/")}
  width = params["head"]["kernel"].shape[0]
  assert head == {"params/head/kernel": width * 100, "params/head/bias": 100}
  return sizes


def tree(**leaves):
  """Nested arrays from fc1__kernel=[...]."""
  return nest({p.replace("__", "/"): jnp.asarray(v, jnp.float32) for p, v in leaves.items()})
