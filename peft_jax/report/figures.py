"""The tables of a report as figures, drawn by matplotlib, which is needed for nothing else.

The bytes of a file are a function of its table and of matplotlib's version.
"""

import pathlib

import numpy as np

from peft_jax import files

FORMATS = {"png": {"Software": None}, "svg": {"Date": None}}  # and what to leave out of each
DPI = 150


def need():
  """Raises ValueError in one sentence where matplotlib is not installed."""
  try:
    import matplotlib.figure  # noqa: F401
  except ImportError:
    raise ValueError("Figures are drawn by matplotlib, which is not installed: "
                     "pip install -e '.[figures]'.") from None


def save(table, folder):
  """Writes the figure of a table as NAME.png and NAME.svg into `folder`; returns their paths."""
  need()
  import matplotlib

  figure, paths = DRAWN[table.name](table), []
  for kind, metadata in FORMATS.items():
    path = pathlib.Path(folder) / f"{table.name}.{kind}"
    with matplotlib.rc_context({"svg.hashsalt": "peft_jax"}), files.replacing(path) as file:
      figure.savefig(file, format=kind, dpi=DPI, metadata=metadata)
    paths.append(path)
  return paths


def _axes(table, width=6.4, height=3.6):
  """(figure, axes) under a table's title; a figure of its own, nothing is kept by matplotlib."""
  from matplotlib.figure import Figure

  figure = Figure((width, height), layout="constrained")
  axes = figure.subplots()
  axes.set_title(table.title, fontsize="medium")
  return figure, axes


def _series(table):
  """{label: values} of a table of shares or counts."""
  names = ("percent",) if "percent" in table.columns else table.columns[1:]
  return {name: np.array(table.column(name), float) for name in names}


def blocks(table):
  """A line for each selection: the share of every block, counted from 1 through all stages."""
  figure, axes = _axes(table)
  for label, values in _series(table).items():
    axes.plot(np.arange(1, len(values) + 1), values, marker="o", label=label)
  axes.set_xlabel("block")
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set_ylabel("percent of its numbers")
  axes.set_ylim(bottom=0)
  return _with_legend(figure, axes)


def operations(table):
  """A group of bars for every operation, a bar for each selection."""
  figure, axes = _axes(table)
  found = _series(table)
  at, width = np.arange(len(table.rows)), 0.8 / len(found)
  for i, (label, values) in enumerate(found.items()):
    axes.bar(at + (i - (len(found) - 1) / 2) * width, values, width, label=label)
  axes.set_xticks(at, table.column("operation"), rotation=30, ha="right")
  axes.set_ylabel("percent of its numbers")
  return _with_legend(figure, axes)


def histogram(table):
  """The chosen entries of every kernel, in the order in which the model runs them."""
  figure, axes = _axes(table, 9.6, 4.2)
  names = table.column("kernel")
  for label, values in _series(table).items():
    axes.plot(np.arange(len(values)), values, drawstyle="steps-mid", label=label)
  every = -(-len(names) // 40)  # of more names than fit, every n-th
  short = [name.removesuffix("/kernel").replace("encoder/", "") for name in names]
  axes.set_xticks(np.arange(len(names))[::every], short[::every], rotation=90, fontsize="x-small")
  axes.set_ylabel("entries")
  axes.set_ylim(bottom=0)
  return _with_legend(figure, axes)


def overlap(table):
  """A square for each two selections, with its number."""
  names = table.columns[1:]
  side = 2.4 + 0.5 * len(names)
  figure, axes = _axes(table, side + 1, side)
  values = np.array([row[1:] for row in table.rows], float)
  shown = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
  for i, j in np.ndindex(*values.shape):
    axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize="small",
              color="black" if values[i, j] > 0.5 else "white")
  axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
  axes.set_yticks(range(len(names)), names)
  figure.colorbar(shown)
  return figure


def variance(table):
  """A bar for each set of weights."""
  figure, axes = _axes(table)
  names = [f"{name}\n{n} tasks" for name, n, _ in table.rows]
  axes.bar(names, np.array(table.column("variance"), float), 0.6)
  axes.set_xlim(-1, len(names))
  axes.set_ylabel("percent squared")
  return figure


def domain(table):
  """A bar for each row's gap, and as a line what the first runs are ahead of the second."""
  figure, axes = _axes(table)
  at = np.arange(len(table.rows))
  axes.bar(at, np.array(table.column("gap"), float), 0.6, color="tab:gray", label="gap")
  axes.set_xticks(at, table.column(table.columns[0]), rotation=30, ha="right")
  axes.set_ylabel("gap")
  if "A - B" in table.columns:
    other = axes.twinx()
    other.plot(at, np.array(table.column("A - B"), float), "o-", color="tab:red")
    other.set_ylabel("accuracy of A - B, percent points", color="tab:red")
  return figure


def _with_legend(figure, axes):
  if len(axes.get_legend_handles_labels()[1]) > 1:
    axes.legend(fontsize="small")
  return figure


DRAWN = {
  "blocks": blocks,
  "operations": operations,
  "histogram": histogram,
  "overlap": overlap,
  "module_overlap": overlap,
  "variance": variance,
  "domain": domain,
  "domain_groups": domain,
}
