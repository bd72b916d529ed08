"""The file of a selection: its size and bytes, what it gives back, and what it refuses."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from peft_jax import models, safetensors
from peft_jax.methods import GPS
from peft_jax.selection import file as selection_file
from peft_jax.sites import select, sites
from peft_jax.tuned import Tuned


def about(method, task="mini_digits", base="a" * 64):
  """What `selection_file.about` says of a run."""
  config = types.SimpleNamespace(task=task, seed=3, batch_size=40,
                                 data=dict.fromkeys(("resize", "normalize", "augment"), "none"),
                                 model=types.SimpleNamespace(name="vit_test", image_size=32))
  weights = types.SimpleNamespace(name="random", fingerprint=base)
  dataset = types.SimpleNamespace(fingerprint=lambda: "d" * 64)
  split = types.SimpleNamespace(name="train800")
  return selection_file.about(method, "gps", config, weights, dataset, split)


def selection(name, method):
  """(places, header) of k random inputs a neuron of every kernel of a backbone."""
  model = models.create(name, num_classes=0)
  table = select(sites(model, models.images(model)), method.sites, method.kinds, head=Tuned.head)
  random = np.random.default_rng(0)
  shapes = {f"{path}/kernel": site.fan_in + site.fan_out for path, site in table.items()}
  places = {}
  for path, shape in shapes.items():
    fan_in, fan_out = int(np.prod(shape[:-1])), shape[-1]
    rows = random.integers(0, fan_in, (method.k, fan_out))
    places[path] = (rows * fan_out + np.arange(fan_out)).astype(np.int32)
  counts = {path: rows.size for path, rows in places.items()}
  return places, selection_file.header(about(method), [method], ["gps"], shapes, counts)


@pytest.fixture
def small():
  return selection("vit_test", GPS(k=2))


def test_a_file_gives_back_every_bit_and_is_a_function_of_its_content(small, tmp_path):
  places, header = small
  first, second = tmp_path / "a", tmp_path / "b"
  selection_file.save(first, places, header)
  selection_file.save(second, dict(reversed(places.items())), dict(reversed(header.items())))
  assert first.read_bytes() == second.read_bytes()
  assert first.stat().st_size == selection_file.size(places, header)
  found, told = selection_file.read(first)
  assert told == header and found.keys() == places.keys()
  for path, rows in places.items():
    assert found[path].dtype == np.int32
    np.testing.assert_array_equal(found[path], rows)
  other = dict(places) | {"patch_embed/kernel": places["patch_embed/kernel"] + 1}
  selection_file.save(second, other, header)
  assert first.read_bytes() != second.read_bytes()


def test_one_weight_a_neuron_of_a_vit_b16_takes_at_most_0_6_mb(tmp_path):
  places, header = selection("vit_b16", GPS())
  assert sum(rows.size for rows in places.values()) == 83_712
  path = tmp_path / "selection.safetensors"
  selection_file.save(path, places, header)
  shapes = {leaf: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for leaf, rows in places.items()}
  assert path.stat().st_size == selection_file.size(shapes, header)
  assert 4 * 83_712 < path.stat().st_size <= 600_000


def test_a_selection_is_refused_on_other_weights_and_by_another_rule():
  found = about(GPS(k=2))
  selection_file.check("x", found, about(GPS(k=2, biases=False, form="kernel"), task="dtd"))
  with pytest.raises(ValueError, match="weights with fingerprint aaaaaaaaaaaaaaaa, this run has b"):
    selection_file.check("x", found, about(GPS(k=2), base="b" * 64))
  deciding = {"k": 1, "level": "net", "score": "magnitude", "temperature": 0.1, "sites": "a.*"}
  for field, value in deciding.items():
    with pytest.raises(ValueError, match=f"with {field}=.*, this run has {value!r}; give the same"):
      selection_file.check("x", found, about(dataclasses.replace(GPS(k=2), **{field: value})))
  assert selection_file.same(found | {"counts": {}}, about(GPS(k=2)))
  assert not selection_file.same(found, about(GPS(k=2), task="dtd"))


DAMAGE = {
  "text": (lambda h: "[", "no table of format 2"),
  "format": (lambda h: h | {"format": 3}, "no table of format 2"),
  "earlier": (lambda h: h | {"format": 1}, "by an earlier version (format 1 instead of 2): remove"),
  "base": (lambda h: h | {"base": 1}, "base is no str"),
  "seed": (lambda h: h | {"seed": True}, "seed is no int"),
  "missing": (lambda h: {key: v for key, v in h.items() if key != "model"}, "model is no str"),
  "method": (lambda h: h | {"method": {}}, "a method has no name"),
  "methods": (lambda h: h | {"methods": [3]}, "a method has no name"),
  "shape": (lambda h: h | {"shapes": {"a": [2, -1]}}, "a shape is none"),
  "flat": (lambda h: h | {"shapes": {"a": 2}}, "a shape is none"),
  "count": (lambda h: h | {"counts": {"patch_embed/kernel": 10**9}}, "a count is larger"),
  "leaf": (lambda h: h | {"shapes": {}, "counts": {}}, "is no leaf that could be chosen from"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_header_is_one_sentence(small, tmp_path, name):
  places, header = small
  change, sentence = DAMAGE[name]
  path = tmp_path / "selection.safetensors"
  text = change(header)
  text = text if isinstance(text, str) else json.dumps(text)
  safetensors.write(path, places, {selection_file.NAME: text})
  with pytest.raises(ValueError) as caught:
    selection_file.read(path)
  assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_places_outside_their_leaf_and_files_of_another_kind_are_refused(small, tmp_path):
  places, header = small
  path = tmp_path / "selection.safetensors"
  selection_file.save(path, places | {"patch_embed/kernel": np.array([[-1]])}, header)
  with pytest.raises(ValueError, match="patch_embed/kernel has a place outside the leaf's 4608"):
    selection_file.read(path)
  safetensors.write(path, {"patch_embed/kernel": np.zeros(1)}, {selection_file.NAME: "{}"})
  with pytest.raises(ValueError, match="damaged header"):
    selection_file.read(path)
  safetensors.write(path, places)
  with pytest.raises(ValueError, match="is no selection"):
    selection_file.read(path)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match="no complete safetensors file"):
    selection_file.read(path)
