"""Figures exist, can be opened, and show the numbers of their tables."""

import builtins
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from peft_jax.report import domain, figures
from peft_jax.report import selection as report


@pytest.fixture(scope="module")
def tables(selection):
  """Every table there is, on three files of two tasks."""
  several = [selection("swin_test", task, seed, share) for task, seed, share in
             [("mini_digits", 0, 0.05), ("mini_digits", 1, 0.06), ("mini_texture", 0, 0.2)]]
  several = [s._replace(label=label) for s, label in zip(several, "abc", strict=True)]
  several = [s._replace(header=s.header | {"methods": [
    {"method": "spt"}, {"method": "lora", "sites": [*"xyz"[i:], "w"]}]})
    for i, s in enumerate(several)]
  found = report.tables(several)
  pairs = [domain.Pair("dtd", "m", (75.0, 50.0)), domain.Pair("svhn", "m", (50.0, 62.5))]
  gaps = {("dtd", "natural"): 2.0, ("svhn", "natural"): 4.0}
  found["domain"] = domain.table(gaps, "linear", "mini_pretrain", pairs)
  found["domain_groups"] = domain.by_group(found["domain"])
  return found


@pytest.fixture(scope="module")
def alone(selection):
  return report.tables([selection()])


def test_there_is_a_figure_for_every_table(tables):
  assert tables.keys() == figures.DRAWN.keys()


@pytest.mark.parametrize("name", figures.DRAWN)
def test_files_can_be_opened_and_their_bytes_are_a_function_of_the_table(tables, tmp_path, name):
  paths = figures.save(tables[name], tmp_path / "a")
  again = figures.save(tables[name], tmp_path / "b")
  assert [path.name for path in paths] == [f"{name}.png", f"{name}.svg"]
  assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
  with Image.open(paths[0]) as image:
    image.load()
    assert image.format == "PNG" and min(image.size) > 200 and len(image.getcolors(1 << 20)) > 2
  assert xml.etree.ElementTree.parse(paths[1]).getroot().tag.endswith("svg")
  assert len(list((tmp_path / "a").iterdir())) == 2  # nothing temporary is left


@pytest.mark.parametrize("name", ["blocks", "histogram"])
def test_lines_are_the_columns(tables, alone, name):
  (axes,) = figures.DRAWN[name](tables[name]).axes
  assert [line.get_label() for line in axes.lines] == ["a", "b", "c"]
  for line in axes.lines:
    np.testing.assert_array_equal(line.get_ydata(), tables[name].column(line.get_label()))
  assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "c"]
  (axes,) = figures.DRAWN[name](alone[name]).axes
  (line,) = axes.lines
  column = "percent" if name == "blocks" else alone[name].columns[1]
  np.testing.assert_array_equal(line.get_ydata(), alone[name].column(column))
  assert axes.get_legend() is None


def test_blocks_are_counted_from_one(tables):
  (axes,) = figures.blocks(tables["blocks"]).axes
  np.testing.assert_array_equal(axes.lines[0].get_xdata(), [1, 2, 3, 4])  # 2 stages of 2
  assert axes.get_ylim()[0] == 0


def test_the_bars_of_operations_stand_side_by_side(tables):
  (axes,) = figures.operations(tables["operations"]).axes
  names = [label.get_text() for label in axes.get_xticklabels()]
  assert names == tables["operations"].column("operation") and "fc2" in names
  spans = []
  for bars, label in zip(axes.containers, "abc", strict=True):
    assert [bar.get_height() for bar in bars] == tables["operations"].column(label)
    spans += [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars]
  spans.sort()
  assert all(left[1] <= right[0] + 1e-9 for left, right in zip(spans, spans[1:], strict=False))


@pytest.mark.parametrize("name", ["overlap", "module_overlap"])
def test_the_matrix_and_its_numbers_are_the_overlaps(tables, name):
  axes = figures.DRAWN[name](tables[name]).axes[0]
  values = np.array([row[1:] for row in tables[name].rows])
  np.testing.assert_array_equal(axes.images[0].get_array(), values)
  texts = {text.get_position(): text.get_text() for text in axes.texts}
  assert texts == {(j, i): f"{values[i, j]:.2f}" for i, j in np.ndindex(3, 3)}
  assert len(set(values.ravel())) > 2


def test_bars_of_variance_and_of_the_gap_with_its_line(tables):
  (axes,) = figures.variance(tables["variance"]).axes
  assert [bar.get_height() for bar in axes.patches] == tables["variance"].column("variance")
  for name, labels in {"domain": ["dtd", "svhn"], "domain_groups": ["natural"]}.items():
    axes, other = figures.domain(tables[name]).axes
    assert [bar.get_height() for bar in axes.patches] == tables[name].column("gap")
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    np.testing.assert_array_equal(other.lines[0].get_ydata(), tables[name].column("A - B"))
  without = domain.table({("dtd", "natural"): 2.0}, "rbf", "mini_pretrain")
  assert len(figures.domain(without).axes) == 1


def test_without_matplotlib_one_sentence_says_what_to_install(tables, tmp_path, monkeypatch):
  real = builtins.__import__

  def missing(name, *args, **kwargs):
    if name.startswith("matplotlib"):
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", missing)
  with pytest.raises(ValueError, match=r"not installed: pip install -e '\.\[figures\]'"):
    figures.save(tables["blocks"], tmp_path)
  assert not list(tmp_path.iterdir())
