"""What a run does before training where a method chooses what it trains."""

from __future__ import annotations

import time

from peft_jax import data, methods
from peft_jax.selection import file as selection_file
from peft_jax.selection import places as selected
from peft_jax.train import feed, shard


def choose(config, workdir, parallel, dataset, split, model, params, base, table):
  """(methods knowing their choice, {collection: places}) of a resolved config.

  A choice is read from config.selection, else from the selection.safetensors that an earlier start
  of this very run left in `workdir`, else made from the images of `split`; it is written there.
  """
  built, chosen = list(methods.build(config)), {}
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
      places, found = selection_file.read(config.selection)
      selection_file.check(config.selection, found, about)
      about = found
    elif kept is not None and kept.exists():
      earlier, found = selection_file.read(kept)
      places = earlier if found == about else None
    if places is None:
      places = made(config, method, parallel, split, model, params, table)
    if kept is not None:
      selection_file.save(kept, places, about)
    built[i] = selected.told(method, places)
    chosen[method.collection] = places
  return tuple(built), chosen


def made(config, method, parallel, split, model, params, table):
  """The places that `method` chooses on the images of `split`."""
  if not selected.needs_data(method):
    return selected.choose(method, model, params, table, config)
  how = shard.Parallel("jit", parallel.devices)
  batches = feed.feed(split, config.batch_size, config.seed, how, config.data.resident_mb)
  steps, begun = data.steps_per_epoch(config.batch_size, len(split)), time.monotonic()

  def show(done):
    if done in (1, steps) or done % 10 == 0:
      seconds = time.monotonic() - begun
      print(f"choosing by {method.score}: batch {done}/{steps}  {seconds:.0f} s", flush=True)

  return selected.choose(method, model, how.place(params), table, config, batches, steps, show)
