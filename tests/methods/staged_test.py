"""SAN and SSF on Swin and ConvNeXt: pairs, wires, counts, and exact merges."""

import importlib.util
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models
from peft_jax.methods import SAN, SSF, LoRA
from peft_jax.sites import sites
from peft_jax.tree import flat
from peft_jax.tuned import Tuned

spec = importlib.util.spec_from_file_location("layers", pathlib.Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

SWIN, CONVNEXT = "swin_base_patch4_window7_224", "convnext_base"

MODELS = {
  "swin": models.Swin(3, width=6, depths=(1, 1), heads=(2, 3), window=3, image_size=20),
  "convnext": models.ConvNeXt(3, (4, 6), (1, 2), image_size=16, layer_scale=0.5),
  "convnextv2": models.ConvNeXt(3, (4, 6), (1, 2), image_size=16, layer_scale=None, grn=True),
  "one_stage": models.ConvNeXt(3, (4,), (2,), image_size=16, layer_scale=0.5),
}


@pytest.mark.parametrize("name, pairs, more, total, between", [
  (SWIN, 147 + 2 * 24, 0, 267_264, 7_168),  # q, k and v are three pairs here
  (CONVNEXT, 147, 2_048, 255_232, 5_376),
])
def test_ssf_counts(name, pairs, more, total, between):
  sizes = layers.trained(SSF(), name)
  norm = {path: sizes.pop(path) for path in list(sizes) if path.startswith("params/")}
  assert sum(norm.values()) == more and set(norm) <= {"params/norm/scale", "params/norm/bias"}
  assert len(sizes) == 2 * pairs and sum(sizes.values()) == total
  assert not any("/downsample/" in path for path in sizes)
  wider = layers.trained(SSF(downsample_pairs=True), name)
  assert sum(wider.values()) == total + between + more
  assert not any("reduction" in path for path in wider)


@pytest.mark.parametrize("name, scale, recal, norms", [
  (SWIN, 110_208, 87_808, 57_600),
  (CONVNEXT, 110_208, 109_184, 38_144 + 2_048),  # the norm of the head is trained like the others
])
def test_san_counts(name, scale, recal, norms):
  sizes = layers.trained(SAN(), name)
  found = {leaf: sum(n for p, n in sizes.items() if p.startswith("san/") and p.endswith(leaf))
           for leaf in ("/scale", "/recal")}
  assert found == {"/scale": scale, "/recal": recal}
  assert sum(n for p, n in sizes.items() if p.startswith("params/")) == norms
  assert sum(sizes.values()) == scale + recal + norms


def wires(name, **options):
  model, _, table = layers.by_shapes(name)
  method, _ = Tuned(model, (SAN(**options),), table).bound[0]
  return {wire.site: (wire.sources, wire.recal) for wire in method.wiring}


def test_swins_wires():
  found = wires(SWIN)
  assert len(found) == 24 * 6 + 3
  reduction, block = "stages_2/downsample/reduction", "stages_2/blocks_17"
  qkv = tuple(f"{block}/attn/{n}" for n in "qkv")
  for path in qkv:
    assert found[path] == ((reduction,), qkv[0])
  assert found[f"{block}/attn/proj"] == (qkv, f"{block}/attn/proj")
  assert found[f"{block}/mlp/fc1"][0] == (f"{block}/attn/proj",)
  assert found[f"{block}/mlp/fc2"][0] == (f"{block}/mlp/fc1",)
  assert found["stages_3/downsample/reduction"][0] == (f"{block}/mlp/fc2",)
  assert found["stages_0/blocks_1/attn/k"][0] == ("patch_embed/proj",)
  chained = wires(SWIN, qkv_source="prev_fc2", proj_source="none")
  assert chained[qkv[0]][0] == ("stages_2/blocks_16/mlp/fc2",)
  assert chained["stages_2/blocks_0/attn/q"][0] == (reduction,)
  assert f"{block}/attn/proj" not in chained


def test_convnexts_wires():
  found = wires(CONVNEXT)
  assert len(found) == 36 * 3 + 3
  conv, block = "stages_2/downsample/conv", "stages_2/blocks_26"
  assert found[f"{block}/dwconv"] == ((conv,), f"{block}/dwconv")
  assert found[f"{block}/fc1"][0] == (f"{block}/dwconv",)
  assert found[f"{block}/fc2"][0] == (f"{block}/fc1",)
  assert found["stages_3/downsample/conv"][0] == (f"{block}/fc2",)
  assert found["stages_0/blocks_0/dwconv"][0] == ("stem/conv",)
  assert wires(CONVNEXT, qkv_source="prev_fc2")[f"{block}/dwconv"][0] == (
    "stages_2/blocks_25/fc2",)


def test_golden_patch_merging():
  """C = 1: inputs 1, 2, 3, 4, the last fc2's scale 3, recalibration 1, 2, 1, 0.5, scale 1, 2."""
  model = models.Swin(0, width=1, depths=(1, 1), heads=(1, 1), window=1, image_size=8)
  x = jnp.zeros((1, 8, 8, 3))
  tuned = Tuned(model, (SAN(),), sites(model, x), head="")
  start = jax.eval_shape(tuned.init, jax.random.key(0))
  san = jax.tree.map(lambda v: jnp.ones(v.shape), start)["san"]
  san["stages_0"]["blocks_0"]["mlp"]["fc2"]["scale"] = jnp.asarray([3.0])
  san["stages_1"]["downsample"]["reduction"] = layers.tree(recal=[1, 2, 1, 0.5], scale=[1, 2])
  path = "stages_1/downsample/reduction"
  v = {k.rpartition("/")[2]: leaf for k, leaf in tuned.derived({"san": san})["san"].items()
       if k.startswith(path)}
  kernel = jnp.asarray([[1, 1, 1, 1], [1, 0, -1, 0]], jnp.float32).T
  method, places = tuned.bound[0]
  new = method.weights(places[path], {"kernel": kernel}, v)
  np.testing.assert_array_equal(jnp.asarray([[1.0, 2, 3, 4]]) @ new["kernel"], [[30, -12]])


METHODS = {
  "ssf": (SSF(),),
  "san": (SAN(),),
  "san_paper": (SAN(variant="paper"),),
  "ssf_twice_lora": (SSF(), LoRA(rank=2), SSF(collection="more")),
}


QUICK = [("ssf", "convnext"), ("san", "swin"), ("ssf_twice_lora", "convnextv2")]


@pytest.mark.parametrize("methods, name", [
  pytest.param(METHODS[m], n, id=f"{m}-{n}", marks=() if (m, n) in QUICK else pytest.mark.slow)
  for m in METHODS for n in MODELS])
def test_merge_equals_apply(methods, name):
  model = MODELS[name]
  if methods == (SSF(),) and name != "swin":
    methods = (SSF(downsample_pairs=True),)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *2 * (model.image_size,), 3), "f4"))
  params = layers.drawn(jax.eval_shape(model.init, jax.random.key(0), x)["params"], 1)
  tuned = Tuned(model, methods, sites(model, x))
  own = jax.eval_shape(tuned.init, jax.random.key(1), params)
  variables = {"params": params, **layers.drawn(own, 2)}
  apply = jax.jit(lambda params: model.apply({"params": params}, x))
  y, base = jax.jit(tuned.apply)(variables, x), apply(params)
  assert float(jnp.max(jnp.abs(y - base))) > 1e-2 * float(jnp.max(jnp.abs(base)))
  merged = tuned.merge(variables)
  assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, params)
  np.testing.assert_allclose(apply(merged), y, rtol=1e-5, atol=2e-5 * float(jnp.max(jnp.abs(y))))


def test_the_norm_of_pooled_features_is_trained():
  model = MODELS["convnext"]
  x = jnp.zeros((1, 16, 16, 3))
  tuned = Tuned(model, (SSF(),), sites(model, x))
  params = layers.drawn(jax.eval_shape(model.init, jax.random.key(0), x)["params"], 1)
  trained, _ = tuned.split({"params": params, **tuned.init(jax.random.key(1))})
  assert set(flat(trained["params"])) == {
    "head/kernel", "head/bias", "norm/scale", "norm/bias"}
  assert set(trained["ssf"]["norm"]) == {"scale", "shift"}


@pytest.mark.parametrize("method, sentence", [
  (SSF(sites="stages_1/downsample/.*"), "gets no pair without downsample_pairs=True"),
  (SSF(sites=("norm", "stages_1/downsample/conv")), "gets no pair without"),
])
def test_sites_without_a_pair_are_refused(method, sentence):
  model = MODELS["convnext"]
  with pytest.raises(ValueError, match=sentence):
    Tuned(model, (method,), sites(model, jnp.zeros((1, 16, 16, 3))))


def test_the_reduction_never_gets_a_pair():
  model = MODELS["swin"]
  method = SSF(sites=("stages_1/downsample/reduction",), downsample_pairs=True)
  with pytest.raises(ValueError, match="'stages_1/downsample/reduction' gets no pair[.]"):
    Tuned(model, (method,), sites(model, jnp.zeros((1, 20, 20, 3))))


def test_the_pair_of_pooled_features_cannot_lie_below_a_change_of_weights():
  model = MODELS["convnext"]
  x = jnp.zeros((1, 16, 16, 3))
  tuned = Tuned(model, (SSF(), layers.Folded(sites="norm")), sites(model, x))
  params = layers.drawn(jax.eval_shape(model.init, jax.random.key(0), x)["params"], 1)
  with pytest.raises(ValueError, match="SSF at norm .* keep it last"):
    tuned.apply({"params": params, **tuned.init(jax.random.key(1))}, x)


def test_the_pair_of_pooled_features_is_the_papers_affine_of_the_last_stage():
  """Against the model cut open: the last stage's output, times the scale, plus the shift."""
  model = MODELS["convnext"]
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 3), "f4"))
  params = layers.drawn(jax.eval_shape(model.init, jax.random.key(0), x)["params"], 1)
  tuned = Tuned(model, (SSF(sites="norm"),), sites(model, x))
  variables = {"params": params, "ssf": {"norm": layers.tree(
    scale=[1, 2, -1, 0.5, 1, 3], shift=[0, 1, -2, 0, 0.5, 0])}}

  def cut(next_fun, inputs, named, context):
    y, v = next_fun(*inputs, **named), variables["ssf"]["norm"]
    last = context.method_name == "__call__" and context.module.path == ("stages_1",)
    return y * v["scale"][None, None, None] + v["shift"][None, None, None] if last else y

  base = model.apply({"params": params}, x)
  with nn.intercept_methods(cut):
    want = model.apply({"params": params}, x)
  assert float(jnp.max(jnp.abs(want - base))) > 0.1
  np.testing.assert_allclose(tuned.apply(variables, x), want, rtol=1e-5, atol=1e-5)


def test_a_pair_before_the_norm_of_another_model_does_not_fold():
  model = MODELS["swin"]
  x = jnp.zeros((1, 20, 20, 3))
  params = layers.drawn(jax.eval_shape(model.init, jax.random.key(0), x)["params"], 1)
  tuned = Tuned(model, (SSF(sites="norm", end="norm"),), sites(model, x))
  with pytest.raises(ValueError, match="last stage of a ConvNeXt, and this model is none"):
    tuned.merge({"params": params, **tuned.init(jax.random.key(1))})
