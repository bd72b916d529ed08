"""What a run does before training where a method chooses what it trains."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from etils import epath

from peft_jax import data, methods
from peft_jax.methods import entries, spt
from peft_jax.models import unstack_blocks
from peft_jax.selection import file as selection_file
from peft_jax.selection import places as selected
from peft_jax.selection import sensitivity, top
from peft_jax.sites import select
from peft_jax.train import feed, log, shard
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned


def choose(config, workdir, parallel, dataset, split, model, params, base, table):
  """(methods knowing their choice, {collection: {leaf path: places}}) of a resolved config.

  A run that has checkpoints reads the selection.safetensors in `workdir` that it was begun with.
  Else a choice is read from config.selection, or from what an earlier start of this very run left
  in `workdir`, else made from the images of `split`; it is written there.
  """
  built = methods.build(config)
  i = chooser(config, built)
  if i is None:
    return built, {}
  about = selection_file.about(built[i], config.methods[i], config, base, dataset, split)
  about |= {"method": rule(config, built[i])}
  kept = None if workdir is None else epath.Path(workdir) / "selection.safetensors"
  if kept is not None and checkpointed(kept.parent):
    if not kept.exists():
      raise ValueError(f"{kept} is gone, and the checkpoints there are of what it chose: bring it "
                       "back, or choose another --workdir.")
    places, header = selection_file.read(kept)
    return told(config, places, header), {built[i].collection: places} if places else {}
  places = None
  if config.selection:
    places, header = selection_file.read(config.selection)
    selection_file.check(config.selection, header, about)
  elif kept is not None and kept.exists():
    earlier, header = selection_file.read(kept)
    places = earlier if selection_file.same(header, about) else None
  if places is None:
    places, header = chosen(config, built[i], about, parallel, split, model, params, table)
  if kept is not None:
    selection_file.save(kept, places, header)
  return told(config, places, header), {built[i].collection: places} if places else {}


def checkpointed(workdir):
  """Whether a run in this folder has begun to train."""
  steps = workdir / "checkpoints"
  return steps.exists() and any(path.name.isdigit() for path in steps.iterdir())


def told(config, places, header):
  """The methods of a config, knowing the choice that a selection's file holds."""
  built = list(methods.build(config))
  i = chooser(config, built)
  if not isinstance(built[i], methods.SPT):
    built[i] = selected.told(built[i], by_site(places))
    return tuple(built)
  placed = spt.behind(config.methods, built)[1]
  own, *rest = header["methods"]
  paths = rest[0]["sites"] if rest else ()
  there = sensitivity.told(built[i], placed, places, own["whole"], paths)
  return (*built[:i], *there, *built[i + 1 + (placed is not None):])


def explained(config):
  """The methods of a config as its selection has told them; no weights and images are needed.

  Raises ValueError for a method that needs a choice, and the config has none.
  """
  built = methods.build(config)
  i = chooser(config, built)
  if i is not None and config.selection:
    places, header = selection_file.read(config.selection)
    here = {"base": header["base"], "method": rule(config, built[i])}
    selection_file.check(config.selection, header, here)
    if header["model"] != config.model.name:
      raise ValueError(f"The selection {config.selection} is of {header['model']}, this config has "
                       f"model.name={config.model.name}.")
    return told(config, places, header)
  if i is not None and getattr(built[i], "level", "") not in top.ROWS and not built[i].chosen:
    raise ValueError(f"What {config.methods[i]} trains depends on the weights and the task: choose "
                     "it first (python -m peft_jax select), and give --config.selection=FILE.")
  return built


def chooser(config, built):
  """The index of the method that chooses what it trains; None for none."""
  i = next((i for i, method in enumerate(built) if method.chooses), None)
  if i is None and config.selection:
    raise ValueError(f"selection={config.selection} is given, but none of the methods "
                     f"{', '.join(config.methods)} chooses what it trains: leave it unset.")
  return i


def rule(config, method):
  """What decides a choice, as json gives it back: SPT's depends on what it places, too."""
  name, placed = "", None
  if isinstance(method, methods.SPT):
    name, placed = spt.behind(config.methods, methods.build(config))
  own = {} if placed is None else selection_file.plain(placed, name)
  more = {f"{name}.{field}": own[field] for field in sensitivity.DECIDE if field in own}
  return selection_file.plain(method, named(method)) | ({"places": name} | more if name else {})


def named(method):
  return next(name for name, kind in methods.METHODS.items() if kind is type(method))


def chosen(config, method, about, parallel, split, model, params, table):
  """({leaf path: places}, the header of their file): what `method` chooses."""
  if isinstance(method, methods.SPT):
    (found,) = for_budgets(config, method, about, parallel, split, model, params, table).values()
    return found
  places = made(config, method, parallel, split, model, params, table)
  kernels = {f"{path}/kernel": rows for path, rows in places.items()}
  header = selection_file.header(
    about,
    [selected.told(method, places)],
    [about["method"]["method"]],
    shapes=kernels_of(method, table),
    counts={path: np.size(rows) for path, rows in kernels.items()},
  )
  return kernels, header


def kernels_of(method, table):
  """{path of a kernel: shape} of the sites that GPS may choose from, unrolled where scanned."""
  shapes = {f"{path}/kernel": jax.ShapeDtypeStruct(site.stack + site.fan_in + site.fan_out, "f4")
            for path, site in select(table, method.sites, method.kinds, head=Tuned.head).items()}
  unrolled = jax.eval_shape(unstack_blocks, nest(shapes))
  return {path: leaf.shape for path, leaf in flat(unrolled).items()}


def for_budgets(config, method, about, parallel, split, model, params, table, budgets=()):
  """{budget: (places, header)} of an SPT from one scoring; no `budgets`: its own, or its tau."""
  name, placed = spt.behind(config.methods, methods.build(config))
  if method.sites != type(method).sites:
    raise ValueError(f"SPT chooses among all it may, not by spt.sites={method.sites!r}: leave that "
                     "unset.")
  if budgets and method.tau:
    raise ValueError(f"spt.tau={method.tau} takes the place of a budget: give either.")
  show = None
  if method.score in sensitivity.SQUARES:
    images = min(method.num_samples, len(split))
    show = log.Bar(f"choosing by {method.score}: image", images).show
  found = sensitivity.scores(method, model, params, table, config, split, parallel.devices, show)
  made = sensitivity.allocations(method, placed, table, found, budgets)
  files = {}
  for budget, allocation in made.items():
    wanted = sensitivity.number(budget, table)
    if not method.tau and abs(allocation.total - wanted) > wanted / 4:
      print(f"note: spt trains {allocation.total:,} numbers, the nearest to a budget of {wanted:,} "
            "that its sweep finds for these modules and thresholds")
    own = dataclasses.replace(method, budget=float(budget))
    places = sensitivity.entries(own, table, allocation)
    built = sensitivity.told(own, placed, places, allocation.whole, allocation.structured)
    files[budget] = places, selection_file.header(
      about | {"method": rule(config, own)}, built, [named(own), name][: len(built)],
      shapes={path: np.shape(leaf) for path, leaf in found.items()}, counts=allocation.counts,
    )
  return files


def written(tuned, variables, name, places):
  """`variables` with {leaf path: places} and the backbone's own values in the collection `name`."""
  if isinstance(next(m for m in tuned.methods if m.collection == name), methods.SPT):
    return entries.filled(tuned, variables, name, places)
  return selected.written(tuned, variables, name, by_site(places))


def by_site(places):
  """{site path: places} of {path of its kernel: places}."""
  return {path.removesuffix("/kernel"): rows for path, rows in places.items()}


def made(config, method, parallel, split, model, params, table):
  """The places that `method` chooses on the images of `split`."""
  scores = None
  if method.score in sensitivity.SQUARES:
    scores = squares(config, method, parallel, split, model, params, table)
  if scores is not None or not selected.needs_data(method):
    return selected.choose(method, model, params, table, config, scores=scores)
  how = shard.Parallel("jit", parallel.devices)
  batches = feed.feed(split, config.batch_size, config.seed, how, config.data.resident_mb)
  steps = data.steps_per_epoch(config.batch_size, len(split))
  bar = log.Bar(f"choosing by {method.score}: batch", steps)
  params = how.place(params)
  return selected.choose(method, model, params, table, config, batches, steps, bar.show)


def squares(config, method, parallel, split, model, params, table):
  """{path in `params`: scores} of the kernels from which a GPS may choose."""
  chosen = select(table, method.sites, method.kinds, head=Tuned.head)
  paths = tuple(chosen)
  if any(site.stack for site in chosen.values()):
    model, params, _, paths = selected.unrolled(model, params, chosen)
  bar = log.Bar(f"choosing by {method.score}: image", min(method.num_samples, len(split)))
  kernels = tuple(f"{path}/kernel" for path in paths)
  return sensitivity.squares(method, model, params, kernels, config, split, parallel.devices,
                             bar.show)
