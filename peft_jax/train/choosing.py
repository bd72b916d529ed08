"""What a run does before training where a method chooses what it trains."""

from __future__ import annotations

import numpy as np

from peft_jax import data, methods
from peft_jax.selection import file as selection_file
from peft_jax.selection import places as selected
from peft_jax.sites import select
from peft_jax.train import feed, log, shard
from peft_jax.tuned import Tuned


def choose(config, workdir, parallel, dataset, split, model, params, base, table):
  """(methods knowing their choice, {collection: places}) of a resolved config.

  A choice is read from config.selection, else from the selection.safetensors that an earlier start
  of this very run left in `workdir`, else made from the images of `split`; it is written there.
  """
  built, found = list(methods.build(config)), {}
  if config.selection and not any(method.chooses for method in built):
    raise ValueError(f"selection={config.selection} is given, but none of the methods "
                     f"{', '.join(config.methods)} chooses what it trains: leave it unset.")
  for i, method in enumerate(built):
    if not method.chooses:
      continue
    about = selection_file.about(method, config.methods[i], config, base, dataset, split)
    kept = None if workdir is None else workdir / "selection.safetensors"
    places = None
    if config.selection:
      places, header = selection_file.read(config.selection)
      selection_file.check(config.selection, header, about)
    elif kept is not None and kept.exists():
      earlier, header = selection_file.read(kept)
      places = earlier if selection_file.same(header, about) else None
    if places is None:
      places, header = chosen(config, method, about, parallel, split, model, params, table)
    if kept is not None:
      selection_file.save(kept, places, header)
    places = by_site(places)
    built[i] = selected.told(method, places)
    found[method.collection] = places
  return tuple(built), found


def chosen(config, method, about, parallel, split, model, params, table):
  """({path of a kernel: places}, the header of their file): what `method` chooses."""
  places = made(config, method, parallel, split, model, params, table)
  kernels = {f"{path}/kernel": rows for path, rows in places.items()}
  sites = select(table, method.sites, method.kinds, head=Tuned.head)
  header = selection_file.header(
    about,
    [selected.told(method, places)],
    [about["method"]["method"]],
    shapes={f"{path}/kernel": site.fan_in + site.fan_out for path, site in sites.items()},
    counts={path: np.size(rows) for path, rows in kernels.items()},
  )
  return kernels, header


def by_site(places):
  """{site path: places} of {path of its kernel: places}."""
  return {path.removesuffix("/kernel"): rows for path, rows in places.items()}


def made(config, method, parallel, split, model, params, table):
  """The places that `method` chooses on the images of `split`."""
  if not selected.needs_data(method):
    return selected.choose(method, model, params, table, config)
  how = shard.Parallel("jit", parallel.devices)
  batches = feed.feed(split, config.batch_size, config.seed, how, config.data.resident_mb)
  steps = data.steps_per_epoch(config.batch_size, len(split))
  bar = log.Bar(f"choosing by {method.score}: batch", steps)
  params = how.place(params)
  return selected.choose(method, model, params, table, config, batches, steps, bar.show)
