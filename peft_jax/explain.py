"""What is trained where in a tuned model, from shapes alone."""

from __future__ import annotations

import math
from typing import NamedTuple

from peft_jax import partition
from peft_jax.tree import flat, under


class Row(NamedTuple):
  """One site: "x -> y" in `shapes`, "collection.name shape" of what is trained in `trained`."""

  site: str
  kind: str
  shapes: str
  trained: tuple[str, ...]
  count: int


def rows(tuned, every=False):
  """The Row of every site at which something is trained, in call order; of all with `every`.

  Trained are the methods' variables, the head, and the parameters that a scope trains as they
  are, named "params.scale (768,)". The model's own parameters stand under the site "".
  """
  train, frozen = tuned.split(tuned.shapes)
  partly = {path: places.size for path, places in partition.partly(tuned, frozen).items()}
  train = {collection: flat(tree) for collection, tree in train.items()}
  found = []
  for path, site in tuned.table.items():
    here = [
      _named(f"{collection}.{name}", leaf.shape, partly.get(f"{collection}/{path}/{name}"))
      for collection, tree in sorted(train.items(), key=lambda item: item[0] == "params")
      for name, leaf in under(path, tree).items()
    ]
    if here or every:
      stack = f"{list(site.stack)} " if site.stack else ""
      texts, counts = zip(*here, strict=True) if here else ((), ())
      found.append(
        Row(path, site.kind.__name__, f"{stack}{site.x} -> {site.y}", texts, sum(counts))
      )
  return found


def _named(name, shape, partly):
  size = math.prod(shape)
  return (f"{name} {shape}", size) if partly is None else (f"{name} {partly} of {shape}", partly)


def table(tuned, every=False):
  """`rows` as aligned text with a line for the total: what print(tuned) shows."""
  found = rows(tuned, every)
  lines = [("site", "kind", "x -> y", "trained", "count")]
  lines += [
    (row.site or "(the model)", row.kind, row.shapes, ", ".join(row.trained), f"{row.count:,}")
    for row in found
  ]
  at = sum(bool(row.trained) for row in found)
  lines.append((f"total of {at} sites", "", "", "", f"{sum(row.count for row in found):,}"))
  widths = [max(len(line[i]) for line in lines) for i in range(5)]
  return "\n".join(
    "  ".join([c.ljust(w) for c, w in zip(line[:4], widths[:4], strict=True)])
    + "  "
    + line[4].rjust(widths[4])
    for line in lines
  )
