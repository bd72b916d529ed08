"""A backbone with methods attached: init, apply, merge, split, labels."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from peft_jax import partition
from peft_jax.keys import fold
from peft_jax.method import Method
from peft_jax.partition import join
from peft_jax.sites import NoSiteError, Site, select
from peft_jax.tree import flat, nest, under

__all__ = ["Tuned", "join", "reweighted"]


@dataclasses.dataclass(frozen=True)
class Tuned:
  """A Linen model, never edited, and the methods that tune it.

  model: a Linen module whose first call argument is its input; table: sites(model, x).
  methods: in order, methods[0] closest to the weights; `merge` folds in this order.
  head: regular expression of the head's module paths, always trained; "" for none.

  `variables` is {"params": backbone and head, **one collection per method}. At one site, methods
  up to the last that is known only as a change of weights are folded into the weights, the others
  wrap the call.
  """

  model: nn.Module
  methods: tuple[Method, ...]
  table: dict[str, Site] = dataclasses.field(hash=False, compare=False, repr=False)
  head: str = "head(_dist)?"

  def __post_init__(self):
    names = [m.collection for m in self.methods if m.collection] + ["params"]
    for name in {name for name in names if names.count(name) > 1}:
      raise ValueError(f"Two methods claim the collection {name!r}; set `collection` of one.")
    assert self.bound is not None  # a method that does not fit the model fails here, not in a trace

  @functools.cached_property
  def bound(self):
    """((method as bound to the table, {path: its Site}), ...) of the methods with variables."""
    bound = []
    for m in (m for m in self.methods if m.collection):
      places = select(self.table, m.sites, m.kinds, head=self.head, asker=type(m).__name__)
      bound.append((m.bind(self.table, places), places))
    return tuple(bound)

  def init(self, key, params=None):
    """{collection: nested variables} of all methods; params: the backbone's, if they start there.

    A value depends on the key, the collection and the path only, never on other methods or sites.
    """
    params, collections = flat(params or {}), {}
    for method, places in self.bound:
      tree = {}
      for path, site in places.items():
        site_key = fold(fold(key, method.collection), path)
        site_key = jax.random.split(site_key, site.stack) if site.stack else site_key
        made = _mapped(functools.partial(method.init, site), site)(site_key, under(path, params))
        tree |= {f"{path}/{name}": value for name, value in made.items()}
      collections[method.collection] = nest(tree)
    return collections

  @functools.cached_property
  def shapes(self):
    """All variables with float32 jax.ShapeDtypeStructs as leaves, from the table alone."""
    params = nest({
      f"{path}/{name}".lstrip("/"): jax.ShapeDtypeStruct(site.stack + shape, jnp.float32)
      for path, site in self.table.items()
      for name, shape in site.params
    })
    return {"params": params, **jax.eval_shape(self.init, jax.random.key(0), params)}

  def check(self, variables):
    """Raises ValueError unless the methods' variables have the paths and shapes `init` gives."""
    there, needed = (
      flat({m.collection: tree.get(m.collection, {}) for m, _ in self.bound})
      for tree in (variables, self.shapes)
    )
    found, wanted = ({p: jnp.shape(v) for p, v in tree.items()} for tree in (there, needed))
    for path in [p for p in wanted | found if wanted.get(p) != found.get(p)][:1]:
      there, needed = found.get(path, "missing"), wanted.get(path, "no such variable")
      raise ValueError(f"The variable {path} is {there}; this model and method need {needed}.")

  def derived(self, variables):
    """{collection: what the sites read, flat}, of variables that pass `check`."""
    self.check(variables)
    made = {m.collection: m.derive(variables[m.collection], self.table) for m, _ in self.bound}
    return {collection: flat(tree) for collection, tree in made.items()}

  def apply(self, variables, *args, **kwargs):
    """model.apply(variables, *args, **kwargs) with every method acting at its sites.

    rngs: "tuning" is the stream of the methods' own dropout. Raises NoSiteError when a selected
    site did not run.
    """
    derived, ran = self.derived(variables), set()
    read = {(c, path.rpartition("/")[0]) for c, tree in derived.items() for path in tree}

    def interceptor(next_fun, inputs, named, context):
      module, path = context.module, "/".join(context.module.path)
      here = [(m, places[path]) for m, places in self.bound if (m.collection, path) in read]
      if context.method_name != "__call__" or not here or not inputs:
        return next_fun(*inputs, **named)
      held = {p: leaf for p, leaf in flat(module.variables).items() if p.count("/") == 1}
      values = {m.collection: under(m.collection, held) for m, _ in here}
      # A loop that lifts only "params" hides the others: reported below as sites that never ran.
      here = [(m, site) for m, site in here if values[m.collection]]
      ran.update((m.collection, path) for m, _ in here)
      params = own = module.variables.get("params", {})

      def layer(params, x):
        if params is own:
          return next_fun(x, *inputs[1:], **named)
        return module.clone(parent=None).apply({"params": params}, x, *inputs[1:], **named)

      cuts = [i + (m.call is None) for i, (m, _) in enumerate(here) if m.folds_below or not m.call]
      cut = max(cuts, default=0)
      for m, site in here[:cut]:
        params = reweighted(m, site, params, values[m.collection])
      key = module.make_rng("tuning") if module.has_rng("tuning") else None
      if key is None and "tuning" in (kwargs.get("rngs") or {}):
        raise NoSiteError(f"The loop around {path!r} hides the rng stream 'tuning': split it.")
      for m, site in here[cut:]:
        rng = None if key is None else fold(key, m.collection)
        layer = functools.partial(_call, m, site, values[m.collection], layer, rng)
      return layer(params, inputs[0])

    with nn.intercept_methods(interceptor):
      read_by_sites = {collection: nest(tree) for collection, tree in derived.items()}
      y = self.model.apply({**variables, **read_by_sites}, *args, **kwargs)
    if read - ran:
      collection, path = sorted(read - ran)[0]
      raise NoSiteError(
        f"{len(read - ran)} of {len(read)} sites never ran, such as {path!r} of {collection!r}: "
        "the model skips it in this call, or its nn.scan lifts only 'params'; in that case use "
        "model.apply({'params': tuned.merge(variables)}, x)."
      )
    return y

  def merge(self, variables):
    """Backbone parameters that reproduce `apply` without any method; `variables` is unchanged.

    Raises ValueError where no parameters can: a method that is no change of weights, a shift on a
    layer without bias.
    """
    params, derived = flat(variables["params"]), self.derived(variables)
    for method, places in self.bound:
      for path, site in places.items():
        own = {name: params[f"{path}/{name}"] for name, _ in site.params}
        if path not in method.folded and (v := under(path, derived[method.collection])):
          new = _mapped(functools.partial(reweighted, method, site), site)(own, v)
          params |= {f"{path}/{name}": value for name, value in new.items()}
    for method, _ in reversed(self.bound):  # the outermost acts first on what a layer reads
      if method.fold is not None:
        params = flat(method.fold(nest(params), nest(derived[method.collection])))
    return nest(params)

  labels, split = partition.labels, partition.split

  def penalty(self, variables):
    """The sum of what the methods add to the loss, a scalar."""
    parts = [method.penalty(variables[method.collection]) for method, _ in self.bound]
    return sum(parts, start=jnp.zeros((), jnp.float32))

  def __str__(self):
    from peft_jax import explain  # explain needs Tuned; only printing needs explain

    return explain.table(self)


def reweighted(method, site, params, v):
  """method.weights, held to the names and shapes it was given; ValueError where it cannot be."""
  if method.weights is None or site.path in method.folded:
    why = "is no change of weights: it can neither be merged nor lie below one that is only that"
    raise ValueError(f"{type(method).__name__} at {site.path} {why}; keep it last in `methods`.")
  new = method.weights(site, dict(params), v)
  before, after = ({n: jnp.shape(leaf) for n, leaf in p.items()} for p in (params, new))
  for name in [n for n in before | after if before.get(n) != after.get(n)][:1]:
    change = f"of {site.path} from {before.get(name, 'nothing')} to {after.get(name, 'nothing')}"
    raise ValueError(f"{type(method).__name__} would change {name!r} {change}: it cannot fold.")
  return new


def _call(method, site, v, layer, rng, params, x):
  return method.call(site, v, params, layer, x, rng)


def _mapped(function, site):  # over the layers of every loop that lifts the site
  return functools.reduce(lambda mapped, _: jax.vmap(mapped), site.stack, function)
