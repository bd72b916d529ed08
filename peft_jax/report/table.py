"""A table: aligned text for a terminal, and a csv with every digit."""

import csv
import dataclasses
import io


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of text and numbers under named columns.

  name: of its files; title: a sentence on what the numbers are.
  """

  name: str
  title: str
  columns: tuple[str, ...]
  rows: tuple[tuple, ...]

  def column(self, name):
    """The values of one column."""
    at = self.columns.index(name)
    return [row[at] for row in self.rows]

  def __str__(self):
    lines = [self.columns, *([_text(value) for value in row] for row in self.rows)]
    words = [any(isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
    texts = [
      "  ".join(cell.ljust(width) if word else cell.rjust(width)
                for cell, width, word in zip(line, widths, words, strict=True)).rstrip()
      for line in lines
    ]
    return "\n".join([self.title, *texts])

  def csv(self):
    """The rows as csv text; numbers with all their digits."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
    return text.getvalue()


def _text(value):
  if isinstance(value, str):
    return value
  return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
