"""The work of `python -m peft_jax select`: the choice of a run without the run."""

import math
import os

import numpy as np

from peft_jax import methods
from peft_jax.report import selection as report
from peft_jax.selection import file as selection_file
from peft_jax.train import choosing, loop, shard


def select(config, out, budgets=()):
  """Writes the selection of a resolved config to `out`, as its run would, and prints its shares.

  budgets: of SPT, from one scoring: a file for each, FILE-400000.safetensors for FILE.safetensors.
  """
  if not out.endswith(".safetensors"):
    raise ValueError(f"--out={out} must end in .safetensors.")
  built = methods.build(config)
  if not any(method.chooses for method in built):
    every = [name for name, method in methods.METHODS.items() if method.chooses]
    raise ValueError(f"None of the methods {', '.join(config.methods)} chooses what it trains: "
                     f"give --config.methods={' or '.join(every)}.")
  if config.selection:
    raise ValueError(f"selection={config.selection} is a choice already made: leave it unset.")
  at = choosing.chooser(config, built)
  if budgets and not isinstance(built[at], methods.SPT):
    raise ValueError(f"--budgets is for spt, and what chooses here is {config.methods[at]}.")
  parallel = shard.parallel(config.parallel)
  shard.check_batch(config.batch_size, parallel.devices)
  opened = loop.opened(config)
  about = selection_file.about(
    built[at], config.methods[at], config, opened.base, opened.dataset, opened.train_split)
  about |= {"method": choosing.rule(config, built[at])}
  made = (config, built[at], about, parallel, opened.train_split, opened.model, opened.params,
          opened.table)
  if not budgets:
    write(out, *choosing.chosen(*made))
  for budget, found in choosing.for_budgets(*made, budgets).items() if budgets else ():
    write(f"{out.removesuffix('.safetensors')}-{budget}.safetensors", *found)


def numbers(text):
  """The budgets of "200000,400000"; ValueError for anything else."""
  try:
    found = tuple(float(part) for part in text.split(","))
  except ValueError:
    found = (-1.0,)
  if not all(0 <= budget < math.inf for budget in found):
    raise ValueError(f"--budgets={text} is no list of numbers such as 200000,400000.")
  return tuple(int(budget) if budget.is_integer() else budget for budget in found)


def write(out, places, header):
  """Writes a selection and prints the shares of its operations and what it trains."""
  selection_file.save(out, places, header)
  label = f"{header['task']} s{header['seed']}"
  found = report.tables([report.Selection(label, places, header)])
  print(f"{found['operations']}\n")
  what = [f"{sum(map(np.size, places.values())):,} entries of {len(places)} leaves"]
  own, *beside = header["methods"]
  if "whole" in own:
    what.append(f"{len(own['whole'])} whole vectors")
  what += [f"{method['method']} at {len(method['sites'])} sites" for method in beside]
  print(f"{out}: {', '.join(what)}, {os.path.getsize(out):,} bytes")
