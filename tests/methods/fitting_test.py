"""Sites that a method cannot act at: left out of a default selection, refused where asked for."""

import importlib.util
import pathlib
import re

import pytest

from peft_jax.methods import IA3, DoRA, LoRA
from peft_jax.tuned import Tuned

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

DEPTHWISE = "stages_0/blocks_0/dwconv"
SMALLER = dict(rank=1)
METHODS = {LoRA: SMALLER, DoRA: SMALLER, IA3: {}}
EACH = pytest.mark.parametrize("kind", METHODS)


def places(method):
  """Module paths of a ConvNeXt-B that get variables."""
  return {path.split("/", 1)[1].rpartition("/")[0]
          for path in layers.trained(method, "convnext_base")}


@EACH
@pytest.mark.parametrize("sites", [None, ".*"], ids=["default", "everything"])
def test_a_default_selection_leaves_depthwise_convolutions_out(kind, sites):
  found = places(kind(**METHODS[kind], **({"sites": sites} if sites else {})))
  assert not any("dwconv" in path for path in found) and "stages_2/blocks_26/fc2" in found
  assert ("stages_1/downsample/conv" in found) == (kind is not IA3)
  assert ("stages_2/blocks_26/fc1" in found) == (kind is not IA3 or sites == ".*")


@EACH
@pytest.mark.parametrize("sites, todo", [
  ((DEPTHWISE,), "select other sites."),
  (".*/dwconv", "select other sites."),
  ((DEPTHWISE, "stages_0/blocks_0/fc1"), "leave it out of `sites`."),
  ("stages_0/.*", "leave it out, for example with sites='(?!.*dwconv$)(stages_0/.*)'."),
  (".*/fc1|.*/dwconv", "leave it out, for example with sites='(?!.*dwconv$)(.*/fc1|.*/dwconv)'."),
])
def test_one_that_is_asked_for_is_refused_by_its_path(kind, sites, todo):
  model, _, table = layers.by_shapes("convnext_base")
  what = "a convolution, and IA3" if kind is IA3 else "a grouped convolution, whose outputs have no"
  said = f"^{kind.__name__}: {DEPTHWISE} is {what} .*; {re.escape(todo)}$"
  with pytest.raises(ValueError, match=said):
    Tuned(model, (kind(**METHODS[kind], sites=sites),), table)


@EACH
def test_the_pattern_that_the_sentence_gives_works(kind):
  found = places(kind(**METHODS[kind], sites="(?!.*dwconv$)(.*/fc1|.*/dwconv)"))
  assert len(found) == 36 and all(path.endswith("/fc1") for path in found)


def test_ia3_refuses_any_convolution_that_is_asked_for():
  model, _, table = layers.by_shapes("convnext_base")
  with pytest.raises(ValueError, match="IA3: stem/conv is a convolution, and .*; select other"):
    Tuned(model, (IA3(sites=("stem/conv",)),), table)
