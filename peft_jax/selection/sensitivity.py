"""SPT's choice: from scores of a backbone's parameters to the methods that train them.

    methods=("spt", "lora")  ->  (SPT(chosen=..., whole=...), LoRA(sites=...))

A unit is a site at which the method behind SPT would act, with the matrices at or below it; the
module that stands for them costs what the method has there.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.keys import fold, key
from peft_jax.methods import patterns
from peft_jax.methods.scope import norm_paths
from peft_jax.selection.allocate import allocate, allocate_at, grid
from peft_jax.selection.places import fitting, given_scores
from peft_jax.selection.roles import roles
from peft_jax.selection.squares import squared_gradients
from peft_jax.sites import is_head, select
from peft_jax.tree import flat
from peft_jax.tuned import Tuned

# Fields of what is placed that decide where.
DECIDE = ("sites", "rank", "rank_pattern", "width", "reduction", "length", "parallel")
SQUARES = ("squares", "fisher")  # scores that are sums of squared gradients


def scores(method, model, params, table, config, split=None, devices=None, show=None):
  """{leaf path: float32 array} of all that SPT may choose from.

  split, devices, show: as `squares` takes them, where the score needs images.
  """
  own = flat(params)
  leaves = {path: own[path] for path in roles(table)}
  if method.score == "magnitude":
    return {path: np.abs(np.asarray(leaf)) for path, leaf in leaves.items()}
  if method.score == "random":
    start = key(config.seed, "random selection")
    return {path: np.asarray(jax.random.uniform(fold(start, path), leaf.shape))
            for path, leaf in leaves.items()}
  if method.score == "file":
    given = fitting(given_scores(method), own, leaves, asker="SPT")
    return {path: np.abs(leaf) for path, leaf in given.items()}
  return squares(method, model, params, tuple(leaves), config, split, devices, show)


def squares(method, model, params, paths, config, split, devices=None, show=None):
  """{path: float32 array}: squared gradients as the `score` of a method has them, one of SQUARES.

  split: the images; method.num_samples of them are drawn by config.seed.
  devices, show: as `squared_gradients` takes them.
  """
  drawn = jax.random.permutation(key(config.seed, "score samples"), len(split))
  drawn = np.asarray(drawn)[: method.num_samples]
  return squared_gradients(
    model, params, paths, lambda places: split.images(drawn[places]), split.labels[drawn],
    config, group_size=method.group_size, drawn=method.score == "fisher",
    drop_path=method.drop_path, devices=devices, show=show,
  )


def units(placed, table):
  """{site path: (numbers that a module has there, leaf paths of the matrices it stands for)}.

  Raises ValueError where the method's variables are not a site's own, or lie at no matrix.
  """
  name = type(placed).__name__
  if getattr(placed, "share", ()):
    raise ValueError(f"SPT decides for each site alone, which {name}: share={placed.share} does "
                     "not allow: leave it empty.")
  prompts = hasattr(placed, "deep")
  if prompts and (not placed.deep or placed.shared or placed.project or placed.pool != "image"):
    raise ValueError(f"SPT places prompts of each block's own: give {name} deep=True, "
                     "shared=False, project=0 and pool='image'.")
  chosen = select(table, placed.sites, placed.kinds, head=Tuned.head, asker=name)
  bound, found = placed.bind(table, chosen), {}
  matrices = [path for path, role in roles(table).items() if role == "matrix"]
  for path, site in chosen.items():
    inside = tuple(leaf for leaf in matrices if leaf.startswith(f"{path}/"))
    if not inside or (prompts and not path.endswith("attn")):
      continue
    own = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in site.params}
    made = jax.eval_shape(functools.partial(bound.init, site), jax.random.key(0), own)
    if made:
      found[path] = (sum(math.prod(leaf.shape) for leaf in made.values()), inside)
  named = [leaf for _, leaves in found.values() for leaf in leaves]
  if len(set(named)) < len(named):
    raise ValueError(f"SPT: {name} acts at sites of which one holds another; select either.")
  if not found:
    raise ValueError(f"SPT: {name} acts at none of the matrices that may be chosen, such as "
                     f"{next(iter(matrices), 'none')}; select other sites for it.")
  return found


def allocations(method, placed, table, found, budgets=()):
  """{budget: Allocation} of one scoring `found`; budgets: numbers, or shares below 1, of those of
  the backbone; none: the method's own budget, or its tau.
  """
  kinds = roles(table)
  options = dict(
    alpha=method.alpha, beta=method.beta, unstructured=method.unstructured,
    fixed=sum(math.prod(shape) for name, shape in table[""].params if name == "cls_token")
    if method.tokens else 0,
  )
  own = {} if placed is None else units(placed, table)
  if method.tau and not budgets:
    return {method.budget: allocate_at(found, kinds, own, method.tau, **options)}
  given = budgets or (method.budget,)
  asked = {budget: number(budget, table) for budget in given}
  taus = grid(sum(np.size(leaf) for leaf in found.values()))
  made = allocate(found, kinds, own, tuple(asked.values()), taus=taus, **options)
  return {budget: made[asked[budget]] for budget in given}


def number(budget, table):
  """A budget as a number: one below 1 is a share of the backbone's, the head apart."""
  whole = sum(math.prod(shape) for path, site in table.items() if not is_head(path, Tuned.head)
              for _, shape in site.params)
  return round(budget * whole) if budget < 1 else round(budget)


def entries(method, table, allocation):
  """{leaf path: places} that are trained: without those inside norms where norm_entries is off."""
  left_out = frozenset() if method.norm_entries else norm_paths(table)
  return {path: places for path, places in allocation.entries.items() if path not in left_out}


def told(method, placed, places, whole, paths):
  """(SPT knowing its choice, what is placed at exact `paths`); the latter not where there are none.

  places: {leaf path: places of single entries}; whole: leaf paths; placed: None for none.
  """
  chosen = tuple(f"{path}={np.size(places[path])}" for path in sorted(places))
  collection = method.collection if chosen else ""  # it then has no variables
  spt = dataclasses.replace(method, collection=collection, chosen=chosen, whole=tuple(whole))
  return (spt, *([placed_at(placed, tuple(paths))] if paths else []))


def placed_at(method, paths):
  """The method at exact paths; what its fields say of other layers is left out."""
  fields = {field.name for field in dataclasses.fields(method)}
  names = {path.rpartition("/")[2] for path in paths}
  kept = {"parallel": lambda name: name in names}
  kept |= dict.fromkeys(("rank_pattern", "alpha_pattern"), lambda p: patterns.used(p, paths))
  changes = {name: tuple(filter(fits, getattr(method, name)))
             for name, fits in kept.items() if name in fields}
  return dataclasses.replace(method, sites=paths, **changes)
