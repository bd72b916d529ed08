"""A backbone with methods attached: init, apply, merge, split, labels."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from peft_jax.method import Method
from peft_jax.sites import LINEAR, NoSiteError, Site, is_head, select
from peft_jax.tree import flat, nest, under


def _fold_in(key, word):
  """A key of its own for `word`, independent of every other word's."""
  return jax.random.fold_in(key, zlib.crc32(word.encode()))


def _mapped(function, stack):
  """`function` mapped over the stacked axes of its arguments."""
  for _ in stack:
    function = jax.vmap(function)
  return function


@dataclasses.dataclass(frozen=True)
class Tuned:
  """A Linen model and the methods that tune it; the model is never edited.

  model: any Linen module; its first call argument is the input.
  methods: applied in order, methods[0] closest to the weights; `merge` folds in this order.
  table: sites(model, x).
  head: regular expression of the module paths that form the head; always trained.

  `variables` below is {"params": backbone and head, **one collection per method}. At one site,
  methods up to the last that is known only as a change of weights are folded into the weights,
  the others wrap the call; an equal result for every order `merge` accepts is a tested law.
  """

  model: nn.Module
  methods: tuple[Method, ...]
  table: dict[str, Site] = dataclasses.field(hash=False, compare=False, repr=False)
  head: str = "head"

  def __post_init__(self):
    names = [m.collection for m in self.methods if m.collection]
    for name in names:
      if names.count(name) > 1 or name == "params":
        raise ValueError(
          f"The collection {name!r} is claimed twice; give each method a `collection` of its own."
        )
    self._bound  # noqa: B018  (a method that does not fit the model fails here, not in a trace)

  @functools.cached_property
  def _bound(self):
    """((method as bound to the table, {path: Site}), ...), the methods with variables only."""
    bound = []
    for method in self.methods:
      if method.collection:
        chosen = select(
          self.table, method.sites, method.kinds, head=self.head, asker=type(method).__name__
        )
        bound.append((method.bind(self.table, chosen), chosen))
    return tuple(bound)

  def init(self, key, params=None):
    """{collection: nested variables} of all methods, without a forward pass.

    params: the backbone's parameters, for methods that start from them.
    A value depends on the key, the collection and the path only, never on other methods.
    """
    params = flat(params or {})
    collections = {}
    for method, chosen in self._bound:
      tree = {}
      for path, site in chosen.items():
        site_key = _fold_in(_fold_in(key, method.collection), path)
        if site.stack:
          site_key = jax.random.split(site_key, site.stack)
        init = _mapped(functools.partial(method.init, site), site.stack)
        own = {n: p for n, p in under(path, params).items() if n in dict(site.params)}
        tree |= {f"{path}/{name}": value for name, value in init(site_key, own).items()}
      collections[method.collection] = nest(tree)
    return collections

  @functools.cached_property
  def _shapes(self):
    """{collection: {flat path: shape}} that `init` gives."""
    params = {
      f"{path}/{name}" if path else name: jax.ShapeDtypeStruct(site.stack + shape, jnp.float32)
      for path, site in self.table.items()
      for name, shape in site.params
    }
    made = jax.eval_shape(self.init, jax.random.key(0), nest(params))
    return {c: {path: leaf.shape for path, leaf in flat(tree).items()} for c, tree in made.items()}

  def check(self, variables):
    """Raises ValueError unless every collection has the paths and shapes `init` gives."""
    for collection, expected in self._shapes.items():
      if collection not in variables:
        raise ValueError(
          f"The variables have no collection {collection!r}, only {sorted(variables)}; add "
          "tuned.init(key, params)."
        )
      found = {path: jnp.shape(leaf) for path, leaf in flat(variables[collection]).items()}
      for path in expected | found:
        if expected.get(path) != found.get(path):
          raise ValueError(
            f"{collection}/{path} has shape {found.get(path, 'none (it is missing)')}, but this "
            f"model and method need {expected.get(path, 'no such variable')}."
          )

  def _derived(self, variables):
    return {m.collection: m.derive(variables[m.collection], self.table) for m, _ in self._bound}

  def apply(self, variables, *args, **kwargs):
    """model.apply(variables, *args, **kwargs) with every method acting at its sites.

    rngs: "tuning" is the stream of the methods' own dropout; without it they are deterministic.
    Raises NoSiteError when a selected site did not run (the model skips it, or its nn.scan
    lifts only "params": then apply the model to `merge(variables)` instead).
    """
    self.check(variables)
    variables = {**variables, **self._derived(variables)}
    at = {}
    for method, chosen in self._bound:
      for path, site in chosen.items():
        at.setdefault(path, (site, []))[1].append(method)
    ran = set()

    def interceptor(next_fun, inputs, named, context):
      path = "/".join(context.module.path)
      if context.method_name != "__call__" or path not in at or not inputs:
        return next_fun(*inputs, **named)
      module, (site, methods) = context.module, at[path]
      values, own = {}, module.variables
      for m in methods:
        values[m.collection] = {
          name: value
          for name, value in own.get(m.collection, {}).items()
          if hasattr(value, "shape")
        }
        if values[m.collection]:
          ran.add((m.collection, path))
      methods = [m for m in methods if values[m.collection]]
      here = own.get("params", {})

      def plain(params, x):
        if params is here:
          return next_fun(x, *inputs[1:], **named)
        return module.clone(parent=None).apply({"params": params}, x, *inputs[1:], **named)

      cut = max((i + 1 for i, m in enumerate(methods) if m.call is None), default=0)
      params, layer = here, plain
      for m in methods[:cut]:
        params = _reweighted(m, site, params, values[m.collection])
      key = module.make_rng("tuning") if module.has_rng("tuning") else None
      for m in methods[cut:]:
        rng = None if key is None else _fold_in(key, m.collection)
        layer = functools.partial(_wrapped, m, site, values[m.collection], layer, rng)
      return layer(params, inputs[0])

    with nn.intercept_methods(interceptor):
      y = self.model.apply(variables, *args, **kwargs)
    wanted = {
      (m.collection, path)
      for m, chosen in self._bound
      for path in chosen
      if under(path, flat(variables[m.collection]))
    }
    if wanted - ran:
      collection, path = sorted(wanted - ran)[0]
      raise NoSiteError(
        f"{len(wanted - ran)} of {len(wanted)} tuned sites never ran, for example {path!r} of "
        f"{collection!r}: either the model skips it in this call, or its nn.scan lifts only "
        '"params". In the second case use model.apply({"params": tuned.merge(variables)}, x).'
      )
    return y

  def merge(self, variables):
    """Backbone parameters that reproduce `apply` without any method; `variables` is unchanged.

    Raises ValueError for a method that is no change of weights (Adapter, prompts), and where
    the merged tree would need a parameter the backbone lacks (a shift on a bias-free layer).
    """
    self.check(variables)
    params, derived = flat(variables["params"]), self._derived(variables)
    for method, chosen in self._bound:
      if method.weights is None:
        raise ValueError(
          f"{type(method).__name__} is not a change of weights, so it cannot be merged; keep it "
          "as an adapter beside the backbone."
        )
      tree = flat(derived[method.collection])
      for path, site in chosen.items():
        v = under(path, tree)
        if v:
          own = {name: params[f"{path}/{name}"] for name, _ in site.params}
          reweighted = _mapped(functools.partial(_reweighted, method, site), site.stack)
          params |= {f"{path}/{name}": value for name, value in reweighted(own, v).items()}
      if method.fold is not None:
        params = flat(method.fold(nest(params), derived[method.collection]))
    return nest(params)

  def labels(self, variables):
    """The optimizer group of every leaf, in the structure of `variables`.

    "head"; a collection's name for a method's variables; "backbone" for backbone parameters
    that a method trains as they are; "freeze" for the rest and for all integer leaves.
    """
    paths = flat(variables["params"])
    trained = frozenset().union(*(m.trains(self.table, frozenset(paths)) for m in self.methods))
    own = {m.collection for m, _ in self._bound}

    def label(collection, path, leaf):
      if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return "freeze"
      if collection in own:
        return collection
      if collection == "params" and is_head(path.rpartition("/")[0], self.head):
        return "head"
      return "backbone" if collection == "params" and path in trained else "freeze"

    return {
      c: nest({path: label(c, path, leaf) for path, leaf in flat(tree).items()})
      for c, tree in variables.items()
    }

  def split(self, variables):
    """(train, frozen): the leaves to be trained and the others, each {collection: tree}."""
    labels = flat(self.labels(variables))
    leaves = flat(variables)
    train = {path: leaf for path, leaf in leaves.items() if labels[path] != "freeze"}
    return nest(train), nest({path: leaf for path, leaf in leaves.items() if path not in train})

  def vectors(self, tree):
    """Where a leaf must not be decayed: True unless it is a kernel or a method's matrix.

    tree: `variables` or its trained part. A leaf counts as a matrix by its own axes, those of
    a scan removed.
    """

    def is_vector(full_path, leaf):
      collection, _, path = full_path.partition("/")
      site_path, _, name = path.rpartition("/")
      while site_path and site_path not in self.table:
        site_path = site_path.rpartition("/")[0]
      stack = self.table[site_path].stack if site_path in self.table else ()
      is_matrix = len(jnp.shape(leaf)) - len(stack) > 1
      return not (is_matrix and (collection != "params" or name == "kernel"))

    return nest({path: is_vector(path, leaf) for path, leaf in flat(tree).items()})

  def penalty(self, variables):
    """The sum of what the methods add to the loss, a scalar."""
    total = jnp.zeros((), jnp.float32)
    for method, _ in self._bound:
      total = total + method.penalty(variables[method.collection])
    return total

  def __str__(self):
    """The table of sites: path, kind, shapes, variables and their number."""
    return "\n".join(
      f"{path:<44}{kind:<14}{shape:<32}{made:<48}{count:>10}"
      for path, kind, shape, made, count in self.rows()
    )

  def rows(self):
    """[(path, kind, "x -> y", "collection.name shape, ...", variables)] of every tuned site."""
    rows = []
    for path, site in self.table.items():
      made, count = [], 0
      for method, chosen in self._bound:
        if path in chosen:
          for name, shape in under(path, self._shapes[method.collection]).items():
            made.append(f"{method.collection}.{name} {shape}")
            count += int(functools.reduce(lambda a, b: a * b, shape, 1))
      if made:
        rows.append((path, site.kind.__name__, f"{site.x} -> {site.y}", ", ".join(made), count))
    return rows


def _reweighted(method, site, params, v):
  """method.weights, held to the names and shapes it was given."""
  if method.weights is None:
    raise ValueError(
      f"{type(method).__name__} at {site.path} lies below a method known only as a change of "
      "weights; put it later in `methods`."
    )
  new = method.weights(site, dict(params), v)
  for name in new.keys() | params.keys():
    before, after = jnp.shape(params.get(name)), jnp.shape(new.get(name))
    if (name in params) != (name in new) or before != after:
      raise ValueError(
        f"{type(method).__name__} would give {site.path} a parameter {name!r} of shape {after} "
        f"where the backbone has {before if name in params else 'none'}; it cannot be folded here."
      )
  return new


def _wrapped(method, site, v, layer, rng, params, x):
  return method.call(site, v, params, layer, x, rng)


def join(train, frozen):
  """The variables that `Tuned.split` took apart."""
  return nest({**flat(frozen), **flat(train)})


def variables_of(tuned: Tuned, key: Any, params: Any) -> dict:
  """{"params": params, **tuned.init(key, params)}, all that `apply` needs."""
  return {"params": params, **tuned.init(key, params)}


__all__ = ["LINEAR", "NoSiteError", "Tuned", "join", "variables_of"]
