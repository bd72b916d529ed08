"""The work of `python -m peft_jax report`: tables on the terminal, and files in a folder."""

import os
import re

from peft_jax import data, files, models, weights
from peft_jax.keys import key
from peft_jax.report import domain as domains
from peft_jax.report import figures
from peft_jax.report import selection as selections
from peft_jax.train.log import Bar

UNPRINTED = ("histogram",)  # a line for every kernel: in the folder alone


def selection(paths, out=None):
  """Prints what selection files hold; out: a folder for the same as csv, png and svg."""
  if out:
    figures.need()
  made = selections.tables(selections.read(paths))
  show(made.values(), out)


def domain(config, source, kernel="linear", pairs=(), most=1000, out=None):
  """Prints the gap between a task's training images and a source's, see report.domain.

  config: a resolved one; its task where `pairs` ("A.json:B.json") name none. source: a task, or a
  folder of one folder a class. most: images of each.
  """
  if most < 1:
    raise ValueError(f"--images={most} must be 1 or more.")
  if out:
    figures.need()
  pairs = [_pair(text) for text in pairs]
  for found in pairs:
    if found.model != config.model.name:
      raise ValueError(f"The runs on {found.task} are of {found.model}, but the config's features "
                       f"are those of {config.model.name}: give --config.model.name.")
  model = models.create(num_classes=0, **config.model)
  params, _ = weights.load(config.weights, model, key=key(config.seed, "weights"))

  def of(dataset, split):
    indices = domains.sample(split, most)
    batch = min(config.eval.batch_size, len(indices))
    bar = Bar(f"features of {dataset.name}: batch", -(-len(indices) // batch))
    return domains.features(model, params, split, indices, config.data.normalize, batch, bar.show)

  there = _source(config, source)
  far = of(there, there.split(there.train_split))
  gaps = {}
  for task in dict.fromkeys([found.task for found in pairs] or [config.task]):
    dataset = _open(config, task, config.data.root)
    split = config.data.train_split if task == config.task else None
    near = of(dataset, dataset.split(split or dataset.train_split))
    gaps[task, dataset.group] = domains.KERNELS[kernel](near, far)
  made = [domains.table(gaps, kernel, source, pairs)]
  if len(made[0].rows) > 1:
    made.append(domains.by_group(made[0]))
  show(made, out)


def show(tables, out):
  """Prints tables and, given a folder, writes each as csv, png and svg into it."""
  for table in tables:
    if table.name not in UNPRINTED:
      print(f"{table}\n")
  if not out:
    return
  for table in tables:
    path = os.path.join(out, f"{table.name}.csv")
    with files.replacing(path) as file:
      file.write(table.csv().encode())
    figures.save(table, out)
  print(f"{out}: {', '.join(table.name for table in tables)}, each as csv, png and svg")


def _pair(text):
  found = re.fullmatch(r"(.+\.json):(.+\.json)", text)
  if not found:
    raise ValueError(f"--pairs={text} is not of the form A/result.json:B/result.json.")
  return domains.pair(*found.groups())


def _source(config, source):
  """The Dataset of a task's name or of a folder."""
  if source not in (*data.TASKS, *data.OUTSIDE) and os.path.isdir(source):
    return _open(config, "folder", source)
  return _open(config, source, config.data.root)


def _open(config, task, root):
  return data.open(task, root=root, size=config.model.image_size, resize=config.data.resize)
