"""The notebook runs from top to bottom, on the tiny pretrained ViT."""

import os
import pathlib
import re

import nbclient
import nbformat

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks/inspect.ipynb"


def test_inspect_runs_and_shows_trees_sites_and_the_merge():
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  assert not any(cell.get("outputs") for cell in notebook.cells)  # stored without results
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  client = nbclient.NotebookClient(
    notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parents[1])}}
  )
  client.execute(env=environment)
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
  text = "".join(output.get("text", "") for output in outputs)
  shown = [output for output in outputs if "text/html" in output.get("data", {})]
  assert len(shown) >= 4
  line = r"encoder/blocks_1/mlp/fc2 +Dense .*san.recal \(512,\), san.scale \(128,\)"
  assert re.search(line, text)
  losses = [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+)", text)]
  assert len(losses) == 10
  assert float(re.search(r"scale moved by at most ([\d.]+)", text)[1]) > 1e-3
  found = re.search(r"largest logit ([\d.]+), largest logit difference after merging (\S+)", text)
  assert float(found[2]) < 1e-4 * max(1.0, float(found[1]))
