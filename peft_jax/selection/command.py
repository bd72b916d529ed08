"""The work of `python -m peft_jax select`: the choice of a run without the run."""

import os

from peft_jax import methods
from peft_jax.report import selection as report
from peft_jax.selection import file as selection_file
from peft_jax.train import choosing, loop, shard


def select(config, out):
  """Writes the selection of a resolved config to `out`, as its run would, and prints its shares."""
  if not out.endswith(".safetensors"):
    raise ValueError(f"--out={out} must end in .safetensors.")
  built = dict(zip(config.methods, methods.build(config), strict=True))
  choosers = [name for name, method in built.items() if method.chooses]
  if not choosers:
    every = [name for name, method in methods.METHODS.items() if method.chooses]
    raise ValueError(f"None of the methods {', '.join(config.methods)} chooses what it trains: "
                     f"give --config.methods={' or '.join(every)}.")
  if config.selection:
    raise ValueError(f"selection={config.selection} is a choice already made: leave it unset.")
  parallel = shard.parallel(config.parallel)
  shard.check_batch(config.batch_size, parallel.devices)
  opened = loop.opened(config)
  name = choosers[0]
  about = selection_file.about(
    built[name], name, config, opened.base, opened.dataset, opened.train_split)
  places, header = choosing.chosen(
    config, built[name], about, parallel, opened.train_split, opened.model, opened.params,
    opened.table)
  selection_file.save(out, places, header)
  found = report.tables([report.Selection(f"{header['task']} s{header['seed']}", places, header)])
  print(f"{found['operations']}\n")
  entries = sum(rows.size for rows in places.values())
  print(f"{out}: {entries:,} entries of {len(places)} leaves, {os.path.getsize(out):,} bytes")
