"""GPS: forms, counts and what is refused; how its entries are trained: entries_test.py."""

import functools
import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models
from peft_jax.count import count
from peft_jax.methods import GPS
from peft_jax.sites import LINEAR, sites
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)


@pytest.mark.parametrize("options", [
  {"form": "entries"}, {"form": "kernel"}, {"form": "product"}, {"form": "product", "delta": True},
], ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("layer", layers.LAYERS.values(), ids=layers.LAYERS)
def test_forms_agree(layer, options):
  layers.assert_forms_agree(GPS(sites="layer", k=2, score="magnitude", **options), layer)


@pytest.mark.parametrize("name, counts, head", [
  ("vit_base_patch16_224", (167_424, 251_136, 334_848), 769),
  ("swin_base_patch4_window7_224", (282_168, 392_376, 502_584), 1025),
  ("convnext_base", (238_464, 348_672, 458_880), 1025),
])
def test_counts(name, counts, head):
  model, _, table = layers.by_shapes(name)
  for k, expected in enumerate(counts, 1):
    found = count(Tuned(model, (GPS(k=k),), table))
    assert found["trained"] - found["head"] == expected
    assert found["head"] == head * model.num_classes


def test_what_is_trained_by_role():
  model, _, table = layers.by_shapes("swin_base_patch4_window7_224")
  trained = lambda method: count(Tuned(model, (method,), table)).get("backbone", 0)  # noqa: E731
  assert trained(GPS()) == 108_416 + 63_544
  assert trained(GPS(rel_pos=False)) == 108_416
  assert trained(GPS(biases=False)) == 63_544
  assert trained(GPS(norms=True)) - trained(GPS()) == 57_600
  model, _, table = layers.by_shapes("convnext_base")
  assert trained(GPS()) - trained(GPS(layer_scale=False)) == 18_048


@pytest.mark.slow
def test_neuroada_adds_k_for_each_neuron_and_starts_at_the_backbone():
  """k * fan_out a layer and nothing beside, as the 1,359,872 k its paper has for LLaMA-7B."""
  neuroada = functools.partial(
    GPS, score="magnitude", delta=True, biases=False, rel_pos=False, layer_scale=False)
  for name in ("vit_base_patch16_224", "swin_base_patch4_window7_224"):
    model, _, table = layers.by_shapes(name)
    outputs = sum(math.prod(site.fan_out) for path, site in table.items()
                  if issubclass(site.kind, LINEAR) and not path.startswith("head"))
    for k in (1, 20):
      found = count(Tuned(model, (neuroada(k=k),), table))
      assert found["trained"] - found["head"] == k * outputs
  model, x = tiny()
  params = model.init(jax.random.key(0), x)["params"]
  params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
  tuned = Tuned(model, (neuroada(k=2),), sites(model, x))
  variables = {"params": params, **tuned.init(jax.random.key(1), params)}
  values = {p: leaf for p, leaf in flat(variables["gps"]).items() if p.endswith("value")}
  assert values and not any(leaf.any() for leaf in values.values())
  y = model.apply({"params": params}, x)
  np.testing.assert_array_equal(tuned.apply(variables, x), y)
  variables["gps"] |= nest(flat(variables["gps"]) | {p: v + 0.1 for p, v in values.items()})
  assert float(jnp.abs(tuned.apply(variables, x) - y).max()) > 0.1


@pytest.mark.parametrize("wrong, sentence", [
  ({"k": 0}, "^GPS: k=0; it must be at least 1"),
  ({"level": "weight"}, "^GPS: level='weight'; it must be one of"),
  ({"score": "hessian"}, "^GPS: score='hessian'; it must be one of"),
  ({"form": "dense"}, "^GPS: form='dense'"),
  ({"temperature": 0.0}, "^GPS: temperature=0.0; it must be positive"),
])
def test_options_out_of_range_are_refused(wrong, sentence):
  with pytest.raises(ValueError, match=sentence):
    GPS(**wrong)


def test_what_rests_in_skipped_blocks():
  model, _, table = layers.by_shapes("vit_base_patch16_224")
  trained = lambda **more: count(Tuned(model, (GPS(**more),), table))  # noqa: E731
  neurons = 4 * 768 + 3072 + 768  # of a block
  assert trained()["gps"] - trained(skip=(0, 5))["gps"] == 2 * neurons
  assert trained(skip=(0, 5))["backbone"] == trained()["backbone"]
  found = trained(skip=(0, 5), skip_biases=True)
  assert found["backbone"] == trained()["backbone"] - 2 * neurons
  assert trained(level="shared", k=3)["gps"] == trained(k=3)["gps"]


def test_what_has_not_been_chosen_is_told():
  model, x = tiny()
  with pytest.raises(ValueError, match="^GPS: what level='net' trains depends on"):
    Tuned(model, (GPS(level="net"),), sites(model, x))
  tuned = Tuned(model, (GPS(),), sites(model, x))
  params = model.init(jax.random.key(0), x)["params"]
  values = flat(tuned.init(jax.random.key(1), params))
  assert all(jnp.isnan(leaf).all() for path, leaf in values.items() if path.endswith("/value"))


def tiny():
  model = models.ViT(4, width=12, depth=2, heads=3, patch=4, image_size=8, layer_scale=0.5)
  return model, jax.random.normal(jax.random.key(5), (6, 8, 8, 3))
