"""The one direction of imports, and what `import peft_jax` offers."""

import json
import pathlib
import subprocess
import sys

import pytest

import peft_jax

ROOT = pathlib.Path(peft_jax.__file__).parents[1]
TUNING = {"method", "methods", "tuned", "partition", "adapter_file", "loaded", "explain", "account"}
FORBIDDEN = {  # module: parts of the package that importing it must not bring along
  "peft_jax": None,  # None: every part
  "peft_jax.models": TUNING | {"sites", "weights", "data", "train"},
  "peft_jax.weights": TUNING | {"sites", "data", "train"},
  "peft_jax.data": TUNING | {"sites", "models", "weights", "train"},
  "peft_jax.sites": TUNING | {"models", "weights", "data", "train"},
  "peft_jax.methods": {"tuned", "adapter_file", "loaded", "models", "weights", "data", "train"},
  "peft_jax.tuned": {"methods", "adapter_file", "loaded", "models", "weights", "data", "train"},
  "peft_jax.adapter_file": {"train", "account"},
}
PROGRAMS = ("peft_jax.train.loop", "peft_jax.selection.command", "peft_jax.report.command")
FRAMEWORKS = {"tensorflow", "torch", "onnx", "onnxruntime", "safetensors", "transformers", "timm",
              "matplotlib"}


@pytest.fixture(scope="module")
def imported():
  """{module: everything in sys.modules after importing it alone}."""
  code = "import sys, json, importlib; importlib.import_module(sys.argv[1]); "
  code += "print(json.dumps(sorted(sys.modules)))"
  found = {}
  for module in [*FORBIDDEN, "peft_jax.account", *PROGRAMS]:
    done = subprocess.run(
      [sys.executable, "-c", code, module], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found[module] = set(json.loads(done.stdout))
  return found


@pytest.mark.parametrize("module", FORBIDDEN)
def test_imports_go_one_way(imported, module):
  parts = {name.split(".")[1] for name in imported[module] if name.startswith("peft_jax.")}
  assert not (parts if FORBIDDEN[module] is None else parts & FORBIDDEN[module])


def test_importing_the_package_is_cheap(imported):
  assert not {"jax", "flax", "numpy"} & imported["peft_jax"]


def test_no_other_framework_is_imported(imported):
  for modules in imported.values():
    assert not FRAMEWORKS & modules


def test_every_name_offered_exists_and_others_do_not():
  for name in peft_jax.__all__:
    assert getattr(peft_jax, name) is not None
  assert {"SAN", "SSF", "LoRA", "Tuned", "load", "save"} <= set(dir(peft_jax))
  with pytest.raises(AttributeError, match="has no attribute 'lora'; it has .*LoRA"):
    peft_jax.lora  # noqa: B018
