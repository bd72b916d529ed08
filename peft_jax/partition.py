"""Which leaf is trained, in which optimizer group, and whether it decays."""

from __future__ import annotations

import math
import re

import jax.numpy as jnp

from peft_jax.sites import LINEAR, NoSiteError, is_head
from peft_jax.tree import flat, nest


def labels(tuned, variables):
  """The optimizer group of every leaf, in the structure of `variables`, for multi_transform.

  "head"; a collection's name for a method's variables, and for backbone parameters of which it
  trains some places; "backbone" for those that a method trains as they are; "freeze" for the rest
  and for all integer leaves. Raises NoSiteError when `tuned.head` names no module.
  """
  if tuned.head and not any(is_head(path, tuned.head) for path in tuned.table):
    raise NoSiteError(
      f"head={tuned.head!r} names no module of the model, so its head would not be trained: name "
      "the head's modules in Tuned(head=...), or give '' for a model without one."
    )
  paths = frozenset(flat(variables.get("params", {})))
  trained = frozenset().union(*(m.trains(tuned.table, paths) for m in tuned.methods))
  own = {m.collection for m, _ in tuned.bound}
  partly = {path: m.collection for m, _ in tuned.bound if m.masked
            for path in m.masked(tuned.shapes[m.collection])}

  def label(full_path, leaf):
    collection, _, path = full_path.partition("/")
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or collection not in own | {"params"}:
      return "freeze"
    if collection in own:
      return collection
    if is_head(path.rpartition("/")[0], tuned.head):
      return "head"
    return "backbone" if path in trained else partly.get(path, "freeze")

  return nest({path: label(path, leaf) for path, leaf in flat(variables).items()})


def split(tuned, variables):
  """(train, frozen): the leaves to be trained and the others, each {collection: tree}."""
  groups, leaves = flat(labels(tuned, variables)), flat(variables)
  train = {path: leaf for path, leaf in leaves.items() if groups[path] != "freeze"}
  return nest(train), nest({path: leaf for path, leaf in leaves.items() if path not in train})


def partly(tuned, frozen):
  """{full path: int32 flat places} of the trained leaves of which only some places are trained."""
  groups = flat(tuned.labels(tuned.shapes))
  return {f"params/{path}": places
          for m, _ in tuned.bound if m.masked
          for path, places in m.masked(frozen[m.collection]).items()
          if groups[f"params/{path}"] == m.collection}


def masks(tuned, frozen):
  """{full path: bool, the leaf's shape}: where the leaves of `partly` are trained."""
  found = {}
  for path, places in partly(tuned, frozen).items():
    shape = flat(tuned.shapes)[path].shape
    stack = tuned.table[path.partition("/")[2].rpartition("/")[0]].stack
    layers = math.prod(stack)
    mask = jnp.zeros((layers, math.prod(shape) // layers), bool)
    places = jnp.reshape(places, (layers, -1))
    places = jnp.where(places < 0, mask.shape[1], places)  # not chosen yet: in no leaf
    mask = mask.at[jnp.arange(layers)[:, None], places].set(True, mode="drop")
    found[path] = jnp.reshape(mask, shape)
  return found


def fixed(frozen):
  """What a method holds beside its trained variables, such as their places: {collection: tree}.

  An adapter file needs it, too: adapter_file.save(path, join(train, fixed(frozen)), ...).
  """
  return {collection: tree for collection, tree in frozen.items() if collection != "params"}


def join(train, frozen):
  """The variables that `split` took apart."""
  return nest({**flat(frozen), **flat(train)})


def vectors(tuned, tree):
  """Where weight decay must not act: True unless a leaf is a kernel or a method's matrix.

  tree: `variables` or its trained part. The axis of a scan does not make a vector a matrix. What is
  trained at some places of a leaf has the shape of the places, as it has as a method's variable.
  """
  shapes = {f"params/{path}": places.shape for m, _ in tuned.bound if m.masked
            for path, places in m.masked(tuned.shapes[m.collection]).items()}

  def is_vector(full_path, leaf):
    collection, _, path = full_path.partition("/")
    site_path, _, name = path.rpartition("/")
    while site_path and site_path not in tuned.table:
      site_path = site_path.rpartition("/")[0]
    stack = tuned.table[site_path].stack if site_path in tuned.table else ()
    shape = shapes.get(full_path, jnp.shape(leaf))[len(stack) :]
    # One value per output feature is a vector, also over the (heads, width) of a DenseGeneral.
    outputs = tuned.table[site_path].fan_out if site_path in tuned.table else ()
    is_matrix = len(shape) > 1 and shape != outputs
    return not (is_matrix and (collection != "params" or name == "kernel"))

  return nest({path: is_vector(path, leaf) for path, leaf in flat(tree).items()})


def last_biases(tuned):
  """The paths of the biases that are added to the logits: one for each of the model's heads."""
  last = {}
  for path, site in tuned.table.items():  # in call order, so the last one stays
    head = re.match(rf"({tuned.head})(?=/|$)", path) if tuned.head else None
    if head and issubclass(site.kind, LINEAR):
      last[head[0]] = f"params/{path}/bias"
  return frozenset(last.values())
