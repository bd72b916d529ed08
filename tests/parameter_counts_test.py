"""The table of parameter counts beside what the papers print is the one that the code gives."""

import pathlib
import runpy

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks/parameter_counts.py"


@pytest.mark.slow
def test_the_stored_table_is_what_the_methods_count():
  program = runpy.run_path(str(SCRIPT))
  assert program["table"]() == program["FILE"].read_text()
