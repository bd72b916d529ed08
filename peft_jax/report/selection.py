"""What selections have in common and where they lie: tables over the files of one or more.

    share of a block or operation = 100 n / N percent

n: its entries that the scores named (`counts`); N: its numbers that could be chosen (`shapes`).
He et al. 2023, "Sensitivity-aware visual parameter-efficient fine-tuning", arXiv:2303.08566, show
the top 0.4 M so: by block in figure 4 (top) and 5 to 7, by operation in figure 4 (bottom) and 8.
"""

import collections
import json
import math
import re
from typing import NamedTuple

import numpy as np

from peft_jax.report.table import Table
from peft_jax.selection import file as selection_file

# Of a block, in the order in which it runs; what is not named here follows them.
OPERATIONS = ("q", "k", "v", "proj", "dwconv", "fc1", "fc2")
STEM = r"(patch_embed|stem)/"


class Selection(NamedTuple):
  """A file: places {leaf path: int32}, its header, and a label that no other one here has."""

  label: str
  places: dict
  header: dict


class Share(NamedTuple):
  """n entries that the scores named, of N numbers that could be chosen."""

  entries: int
  numbers: int

  @property
  def percent(self):
    return 100 * self.entries / self.numbers


def read(paths):
  """A Selection for each file; ValueError in one sentence where they do not go together."""
  if twice := next((path for path in paths if paths.count(path) > 1), None):
    raise ValueError(f"{twice} is given twice; give each selection once.")
  found = [selection_file.read(path) for path in paths]
  selections = [Selection(label, *pair)
                for label, pair in zip(labels(paths, [h for _, h in found]), found, strict=True)]
  first = selections[0]
  if not blocks(first.header):
    raise ValueError(f"{paths[0]} names no leaf of a block, as in encoder/blocks_0/attn/q/kernel: "
                     "there is nothing to report by block.")
  for path, other in zip(paths, selections, strict=True):
    if list(blocks(other.header)) != list(blocks(first.header)):
      raise ValueError(f"{path} is of {other.header['model']}, which has other blocks than "
                       f"{first.header['model']} of {paths[0]}: report them one by one.")
  return selections


def labels(paths, headers):
  """A short label for each file: its task and seed, and what else tells it from the others."""
  rules = [header["method"] for header in headers]
  differing = [field for field in rules[0] if len({str(rule.get(field)) for rule in rules}) > 1]
  parts = [
    lambda path, header: f"{header['task']} s{header['seed']}",
    lambda path, header: header["method"]["method"],
    lambda path, header: " ".join(f"{field}={header['method'].get(field)}" for field in differing),
    lambda path, header: header["base_name"],
    lambda path, header: str(path),
  ]
  found = [""] * len(headers)
  for part in parts:
    here = [part(path, header) for path, header in zip(paths, headers, strict=True)]
    if len(set(here)) > 1 or part is parts[0]:
      found = [f"{start} {more}".strip() for start, more in zip(found, here, strict=True)]
    if len(set(found)) == len(found):
      break
  return found


def order(path):
  """A key that sorts leaf paths as the model runs them."""
  stage, block = re.search(r"stages_(\d+)/", path), block_of(path)
  operation = operation_of(path)
  rank = OPERATIONS.index(operation) if operation in OPERATIONS else len(OPERATIONS)
  part = 0 if re.match(STEM, path) else 1 if stage or block else 2
  number = int(block.rpartition("_")[2]) if block else -1  # a stage starts with its downsampling
  return part, int(stage[1]) if stage else 0, number, rank, path


def block_of(path):
  """ "stages_0/blocks_1" of "stages_0/blocks_1/attn/q/kernel"; None outside every block."""
  found = re.match(r"(.*/)?blocks_\d+(?=/)", path)
  return found and found[0]


def operation_of(path):
  """The layer of a kernel, "q" or "stem/conv"; None for what is no kernel."""
  layer, _, name = path.rpartition("/")
  if name != "kernel":
    return None
  return layer.rpartition("/")[2] if block_of(path) else re.sub(r"^stages_\d+/", "", layer)


def shares(header, group_of):
  """{group: Share} of a selection's leaves, in run order; group_of(path): None leaves it out."""
  entries, numbers = collections.Counter(), collections.Counter()
  for path in sorted(header["shapes"], key=order):
    if (group := group_of(path)) is not None:
      entries[group] += header["counts"].get(path, 0)
      numbers[group] += math.prod(header["shapes"][path])
  return {group: Share(entries[group], n) for group, n in numbers.items()}


def blocks(header):
  """{path of a block: Share} in run order, through all stages; what lies outside is left out.

  Where all tau largest lie in the blocks the mean of the shares over blocks of equal size is 100
  tau / (numbers of all blocks): 0.470 % for 0.4 M of a ViT-B/16 and all that SPT chooses from.
  """
  return shares(header, block_of)


def operations(header):
  """{layer: Share} of the kernels alone: of a block's first, then of the others in run order."""
  found = shares(header, operation_of)
  rest = [name for name in found if name not in OPERATIONS]
  return {name: found[name] for name in (*OPERATIONS, *rest) if name in found}


def layers(header):
  """{leaf path: Share} of every kernel in run order: the histogram of a choice over the net."""
  return shares(header, lambda path: path if operation_of(path) else None)


def overlap(a, b):
  """Jaccard index of two selections' chosen entries: |A and B| / |A or B|, from 0 to 1.

  a, b: {leaf path: int32 flat places}. NaN where neither chooses an entry. Of SPT these are the
  entries that are trained as such, those of layers with a structured module not among them.
  """
  both = either = 0
  for path in a.keys() | b.keys():
    here, there = (np.unique(places.get(path, np.zeros(0, np.int32))) for places in (a, b))
    common = len(np.intersect1d(here, there, assume_unique=True))
    both, either = both + common, either + len(here) + len(there) - common
  return both / either if either else math.nan


def overlaps(selections):
  """[n, n] float64: the overlap of each two selections; ones on the diagonal."""
  return _each_two([s.places for s in selections], overlap)


def modules(header):
  """The sites at which a choice places modules; empty where it places none."""
  return frozenset(site for method in header["methods"][1:] for site in method["sites"])


def module_overlaps(selections):
  """[n, n] float64: the Jaccard index of each two selections' `modules`; NaN where both have none.

  Over the released allocations of SPT for 0.4 M it is 1.00 for the two tasks of smallNORB, which
  share their images, and 0.00 for CIFAR-100 and Clevr's distance.
  """
  return _each_two([modules(s.header) for s in selections],
                   lambda a, b: len(a & b) / len(a | b) if a | b else math.nan)


def _each_two(values, index):
  found = np.ones((len(values),) * 2)
  for i, a in enumerate(values):
    for j, b in enumerate(values[:i]):
      found[i, j] = found[j, i] = index(a, b)
  return found


def variances(selections):
  """{"base, method": (tasks, variance in percent squared)} of what has two tasks or more.

    variance = mean over blocks of the population variance over tasks of a block's share

  A task's share is the mean over its seeds. Selections belong together that were made on the same
  weights by the same rule. Figure 9 of SPT shows such a variance, without a definition.
  """
  groups = collections.defaultdict(lambda: collections.defaultdict(list))
  names = {}
  for _, _, header in selections:
    rule = header["base"], json.dumps(header["method"], sort_keys=True), len(header["shapes"])
    names[rule] = f"{header['base_name']}, {header['method']['method']}"
    groups[rule][header["task"]].append([share.percent for share in blocks(header).values()])
  found = {}
  for rule, tasks in groups.items():
    if len(tasks) > 1:
      name, again = names[rule], sum(names[rule] == names[r] for r in groups)
      name = f"{name} {len(found) + 1}" if again > 1 else name
      each = np.array([np.mean(seeds, axis=0) for seeds in tasks.values()])
      found[name] = len(tasks), float(np.mean(np.var(each, axis=0)))
  return found


def tables(selections):
  """The tables that these selections give, {name: Table}."""
  made = [
    _shares("blocks", "block", "Chosen, in percent of the block's numbers", blocks, selections),
    _shares("operations", "operation", "Chosen, in percent of the numbers of all such layers",
            operations, selections),
    _counts(selections),
  ]
  names = tuple(s.label for s in selections)
  if len(selections) > 1:
    title = "Overlap of the chosen entries: |A and B| / |A or B|"
    made.append(_matrix("overlap", title, names, overlaps(selections)))
  if len(selections) > 1 and any(modules(s.header) for s in selections):
    title = "Overlap of the sites with modules: |A and B| / |A or B|"
    made.append(_matrix("module_overlap", title, names, module_overlaps(selections)))
  if found := variances(selections):
    title = "Variance over tasks of a block's share (percent squared), mean over blocks"
    rows = tuple((name, *values) for name, values in found.items())
    made.append(Table("variance", title, ("weights, method", "tasks", "variance"), rows))
  return {table.name: table for table in made}


def _shares(name, what, title, found_in, selections):
  """One file: entries, numbers and percent; several: the percent of each."""
  found = [found_in(s.header) for s in selections]
  groups = list(dict.fromkeys(group for one in found for group in one))
  if len(selections) == 1:
    title = f"{selections[0].label}: {title[0].lower()}{title[1:]}"
    rows = ((group, *share, share.percent) for group, share in found[0].items())
    return Table(name, title, (what, "entries", "numbers", "percent"), tuple(rows))
  rows = ((group, *(one[group].percent if group in one else math.nan for one in found))
          for group in groups)
  return Table(name, title, (what, *(s.label for s in selections)), tuple(rows))


def _matrix(name, title, names, values):
  rows = tuple((label, *map(float, row)) for label, row in zip(names, values, strict=True))
  return Table(name, title, ("", *names), rows)


def _counts(selections):
  found = [layers(s.header) for s in selections]
  paths = sorted({path for one in found for path in one}, key=order)
  rows = ((path, *(one[path].entries if path in one else 0 for one in found)) for path in paths)
  columns = ("kernel", *(s.label for s in selections))
  return Table("histogram", "Chosen entries of each kernel", columns, tuple(rows))
