"""Files of HF PEFT: one that PEFT wrote, ours against its formula, and what is refused."""

import functools
import importlib.util
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import __main__ as cli
from peft_jax import adapter_file, models, peft_file, safetensors, weights
from peft_jax.methods import SSF, Bias, DoRA, Linear, LoRA
from peft_jax.sites import sites
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned, join
from peft_jax.weights import names

FILES = pathlib.Path(__file__).parent / "peft_files"
spec = importlib.util.spec_from_file_location("make", FILES / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

TINY = models.ViT(0, width=8, depth=2, heads=2, patch=8, image_size=16)
QKV = r".*/attn/[qkv]"
SHARED = ("q", "k", "v")


def drawn(tree, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), tree)


@functools.cache
def pretrained(name, loop="python"):
  """(model, its table, parameters drawn at random)."""
  model = models.create(name, num_classes=3, loop=loop)
  params = nest(drawn(flat(models.parameters(model.clone(loop="python"))), 0))
  params = models.stack_blocks(params) if "scan" in loop else params
  return model, sites(model, models.images(model)), params


def tuned_at_random(methods, name="vit_test", loop="python"):
  """(tuned, its variables), every one of them random."""
  model, table, params = pretrained(name, loop)
  tuned = Tuned(model, methods, table)
  own = tuned.init(jax.random.key(0), params)
  return tuned, {"params": params, **nest(drawn(flat(own), 1))}


def merged_by_peft(arrays, config, state):
  """timm's state dict with the adapter in it, by the formulas of HF PEFT."""

  def value(patterns, module, default):
    fitting = (v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(fitting, default)

  assert config["peft_type"] == "LORA" and not config["use_rslora"]
  state = {name: np.asarray(w, np.float64) for name, w in state.items()}
  used = set()
  for module in config["target_modules"]:
    key = f"base_model.model.{module}."
    a, b = (np.asarray(arrays[f"{key}lora_{x}.weight"], np.float64) for x in "AB")
    rank = value(config["rank_pattern"], module, config["r"])
    assert a.shape[0] == b.shape[1] == rank
    w = state[f"{module}.weight"]
    assert a.shape[1:] == w.shape[1:] and b.shape[0] == w.shape[0]
    assert b.shape[2:] == (1,) * (w.ndim - 2)
    delta = b.reshape(len(b), rank) @ a.reshape(rank, -1)
    alpha = value(config["alpha_pattern"], module, config["lora_alpha"])
    v = w.reshape(len(w), -1) + alpha / rank * delta
    used |= {f"{key}lora_A.weight", f"{key}lora_B.weight"}
    if config["use_dora"]:
      magnitude = arrays[f"{key}lora_magnitude_vector"]
      assert magnitude.shape == ((len(w),) if w.ndim == 2 else (1, len(w), 1, 1))
      v = v * magnitude.reshape(-1, 1) / np.linalg.norm(v, axis=1, keepdims=True)
      used.add(f"{key}lora_magnitude_vector")
    state[f"{module}.weight"] = v.reshape(w.shape)
  for name in set(arrays) - used:
    inner = name.removeprefix("base_model.model.")
    assert inner.rpartition(".")[0] in config["modules_to_save"]
    assert state[inner].shape == arrays[name].shape
    state[inner] = arrays[name]
  return state


def assert_same(one, other, rtol=1e-5):
  assert one.keys() == other.keys()
  for name, w in one.items():
    scale = np.max(np.abs(w))
    np.testing.assert_allclose(other[name], w, rtol=rtol, atol=rtol * scale, err_msg=name)


# A folder that HF PEFT wrote.


def timm_base():
  shapes = json.loads((FILES / "shapes.json").read_text())
  return {name: make.wave(name, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", make.CONFIGS)
def test_what_hf_peft_saved_answers_as_there(name):
  tuned, train = peft_file.read(FILES / name, TINY)
  base = {"params": nest(names.translate(timm_base())[0])}
  variables = join(train, base)
  images = jnp.asarray(make.images().transpose(0, 2, 3, 1))
  y = jax.jit(tuned.apply)(variables, images)
  plain = jax.jit(tuned.model.apply)(join({"params": train["params"]}, base), images)
  assert float(jnp.max(jnp.abs(y - plain))) > 0.01
  np.testing.assert_allclose(y, np.load(FILES / "logits.npz")[name], rtol=1e-4, atol=1e-5)


def test_a_folder_of_hf_peft_becomes_a_method_one_can_read():
  tuned, _ = peft_file.read(FILES / "lora", TINY)
  assert tuned.methods == (LoRA(
    sites="(.*/)?(attn/k|attn/proj|attn/q|attn/v|mlp/fc1|patch_embed)", rank=2, alpha=3.0,
    rslora=True, share=SHARED,
    rank_pattern=tuple(f"encoder/blocks_1/attn/{n}=3" for n in "qkv"),
    alpha_pattern=tuple(f"encoder/blocks_{i}/mlp/fc1=5" for i in range(2)),
  ),)
  assert tuned.model.num_classes == 3
  tuned, train = peft_file.read(FILES / "dora", TINY)
  assert tuned.methods == (DoRA(
    sites="(.*/)?(attn/k|attn/q|attn/v|mlp/fc2)", rank=2, alpha=3.0, dropout=0.1, share=SHARED),)
  assert train["dora"]["encoder"]["blocks_0"]["attn"]["k"]["magnitude"].shape == (8,)


@pytest.mark.parametrize("name", make.CONFIGS)
def test_writing_it_again_gives_the_same_arrays(name, tmp_path):
  peft_file.write(tmp_path, *peft_file.read(FILES / name, TINY))
  there, metadata = safetensors.read(FILES / name / peft_file.ARRAYS)
  here, own = safetensors.read(tmp_path / peft_file.ARRAYS)
  assert metadata == own == {"format": "pt"}
  assert here.keys() == there.keys()
  for key, array in there.items():
    np.testing.assert_array_equal(here[key], array)
  config = json.loads((tmp_path / peft_file.CONFIG).read_text())
  assert config.items() >= {"r": 2, "modules_to_save": ["head"], "use_dora": name == "dora"}.items()
  if name == "lora":  # rsLoRA's scale, without rsLoRA
    assert config["rank_pattern"] == {"blocks.1.attn.qkv": 3}
    alphas = {"blocks.1.attn.qkv": 3 * 3**0.5} | {f"blocks.{i}.mlp.fc1": 5 * 2**0.5 for i in (0, 1)}
    assert config["lora_alpha"] == pytest.approx(3 * 2**0.5)
    assert config["alpha_pattern"] == pytest.approx(alphas)


# Ours, as PEFT computes them.

EXPORTED = {
  "all": LoRA(rank=2, alpha=3.0),
  "shared": LoRA(rank=2, alpha=3.0, sites=QKV, share=SHARED),
  "apart": LoRA(rank=2, alpha=3.0, sites=QKV),
  "k": LoRA(rank=2, alpha=3.0, sites=".*/attn/k"),
  "q_v": LoRA(rank=2, alpha=3.0, sites=".*/attn/[qv]"),
  "two_share": LoRA(rank=2, sites=QKV, share=("v", "q")),
  "ranks": LoRA(rank=2, sites=r".*/(attn|mlp)/\w+", rank_pattern=("k=1", "blocks_1/.*=3"),
                alpha_pattern=("blocks_0/attn/q=5", "fc1=2.5")),
  "rslora": LoRA(rank=3, rslora=True, sites=r".*/(attn|mlp)/\w+"),
  "dora": DoRA(rank=2, alpha=3.0),
  "dora_shared": DoRA(rank=2, alpha=3.0, sites=QKV, share=SHARED, rank_pattern=("blocks_1/.*=3",)),
}
CASES = [pytest.param(method, "vit_test", "python", id=name) for name, method in EXPORTED.items()]
CASES += [
  pytest.param(LoRA(rank=2, alpha=3.0), "vit_test", "scan", id="scan"),
  pytest.param(LoRA(rank=2), "swin_test", "python", id="swin", marks=pytest.mark.slow),
  pytest.param(DoRA(rank=2), "convnext_test", "python", id="convnext", marks=pytest.mark.slow),
]


def exported(method, name, loop):
  """(merged here, merged by PEFT's formula, arrays, config, tuned, train), in timm's names."""
  tuned, variables = tuned_at_random((method,), name, loop)
  train, frozen = tuned.split(variables)
  arrays, config = peft_file.to_peft(tuned, train)
  timm = lambda params: names.to_timm(flat(models.unstack_blocks(params)))  # noqa: E731
  ours = timm(jax.tree.map(np.asarray, tuned.merge(variables)))
  headless = jax.tree.map(np.asarray, variables["params"])
  headless["head"] = jax.tree.map(np.zeros_like, headless["head"])
  base = timm(headless)
  return ours, merged_by_peft(arrays, config, base), base, arrays, config, train


@pytest.mark.parametrize("method, name, loop", CASES)
def test_what_is_exported_merges_by_pefts_formula_to_what_it_is_here(method, name, loop):
  ours, theirs, base, _, config, _ = exported(method, name, loop)
  changed = {n for n in ours if not np.array_equal(ours[n], base[n])}
  heads = {f"{head}.{leaf}" for head in config["modules_to_save"] for leaf in ("weight", "bias")}
  assert changed == heads | {f"{module}.weight" for module in config["target_modules"]}
  assert_same(ours, theirs)


@pytest.mark.parametrize("method, name, loop", CASES)
def test_what_is_exported_comes_back_with_the_same_weights(method, name, loop):
  ours, _, _, arrays, config, _ = exported(method, name, loop)
  model, _, params = pretrained(name)
  config, model = json.loads(json.dumps(config)), model.clone(num_classes=0)
  again, train = peft_file.from_peft(arrays, config, model)
  merged = again.merge(join(train, {"params": params}))
  assert_same(ours, names.to_timm(flat(jax.tree.map(np.asarray, merged))))


def test_one_a_is_stored_once_and_apart_they_are_block_diagonal():
  name = "base_model.model.blocks.0.attn.qkv.lora_{}.weight"
  _, _, _, arrays, config, train = exported(EXPORTED["shared"], "vit_test", "python")
  v = train["lora"]["encoder"]["blocks_0"]["attn"]
  np.testing.assert_array_equal(arrays[name.format("A")], v["q"]["a"].T)
  np.testing.assert_array_equal(
    arrays[name.format("B")], np.concatenate([v[n]["b"] for n in "qkv"], 1).T)
  assert (config["r"], config["lora_alpha"]) == (2, 3)
  _, _, _, arrays, config, _ = exported(EXPORTED["apart"], "vit_test", "python")
  assert (config["r"], config["lora_alpha"]) == (6, 9)
  b = arrays[name.format("B")].reshape(3, 24, 3, 2)
  assert all((np.any(b[i, :, j]) == (i == j)) for i in range(3) for j in range(3))
  _, _, _, arrays, config, _ = exported(EXPORTED["k"], "vit_test", "python")
  b = arrays[name.format("B")].reshape(3, 24, 2)
  assert [bool(np.any(part)) for part in b] == [False, True, False]
  assert config["target_modules"] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]


def test_an_atto_stores_convolutions():
  tuned, variables = tuned_at_random((LoRA(rank=2, sites=r".*/fc\d"),), "convnext_test")
  train, _ = tuned.split(variables)
  arrays, config = peft_file.to_peft(tuned, train, conv_mlp=True)
  at = "base_model.model.stages.0.blocks.0.mlp.fc1"
  assert arrays[f"{at}.lora_A.weight"].shape == (2, 8, 1, 1)
  assert arrays[f"{at}.lora_B.weight"].shape == (32, 2, 1, 1)
  _, again = peft_file.from_peft(arrays, config, tuned.model)
  assert flat(again).keys() == flat(train).keys()
  for path, leaf in flat(again).items():
    np.testing.assert_array_equal(leaf, flat(train)[path])


# What cannot be.


@pytest.mark.parametrize("methods, name, message", [
  ((SSF(),), "vit_test", "holds one LoRA or one DoRA and the head, not SSF"),
  ((LoRA(), SSF()), "vit_test", "not LoRA, SSF"),
  ((Linear(),), "vit_test", "not Linear"),
  ((LoRA(), Bias()), "vit_test", "encoder/blocks_0/attn/.*/bias is trained here, too"),
  ((DoRA(sites=".*/attn/[qv]"),), "vit_test", "attn/qkv has DoRA for q, v alone; on timm's"),
])
def test_what_pefts_file_cannot_hold(methods, name, message):
  tuned, variables = tuned_at_random(methods, name)
  with pytest.raises(ValueError, match=message):
    peft_file.to_peft(tuned, tuned.split(variables)[0])


def changed(tmp_path, config=None, arrays=None, drop=()):
  """A copy of lora/ with other fields or arrays."""
  shutil.copytree(FILES / "lora", tmp_path / "x")
  path = tmp_path / "x" / peft_file.CONFIG
  path.write_text(json.dumps({**json.loads(path.read_text()), **(config or {})}))
  path = tmp_path / "x" / peft_file.ARRAYS
  there = {n: a for n, a in safetensors.read(path)[0].items() if not re.search(drop or "^$", n)}
  safetensors.write(path, {**there, **(arrays or {})})
  return tmp_path / "x"


AT = "base_model.model."


@pytest.mark.parametrize("change, message", [
  ({"config": {"peft_type": "IA3"}}, "peft_type is 'IA3'; only 'LORA'"),
  ({"config": {"lora_bias": True}}, "lora_bias=True, which cannot be represented"),
  ({"config": {"some_new_field": {"a": 1}}}, "some_new_field={'a': 1}, which cannot"),
  ({"config": {"bias": "all"}}, "bias='all': trained biases"),
  ({"config": {"init_lora_weights": "pissa"}}, "init_lora_weights='pissa', which changes the base"),
  ({"config": {"r": "2"}}, "its config has r='2'"),
  ({"config": {"rank_pattern": ["q"]}}, r"rank_pattern=\['q'\]"),
  ({"config": {"rank_pattern": {"(": 2}}}, r"rank_pattern has '\(', which is no regular expr"),
  ({"config": {"alpha_pattern": {"fc1": None}}}, "lora_alpha=None for blocks.0.mlp.fc1"),
  ({"config": {"rank_pattern": {}}}, "1.attn.qkv has rank 3 in lora_A and 3 in lora_B, but 2"),
  ({"config": {"use_dora": True}}, "has no lora_magnitude_vector"),
  ({"drop": r"head"}, "holds no head; save it with modules_to_save"),
  ({"drop": "lora"}, "holds no lora_A"),
  ({"drop": r"blocks\.0\.mlp\.fc1\.lora_B"}, "blocks.0.mlp.fc1 has no lora_B"),
  ({"arrays": {f"{AT}norm.weight": np.ones(8, np.float32)}}, "norm.weight, which is no part of"),
  ({"arrays": {f"{AT}head.weight": np.ones((3, 9), np.float32)}}, r"\(9, 3\) for .*head/kernel"),
  ({"arrays": {f"{AT}blocks.0.mlp.fc1.lora_A.weight": np.ones((2, 5), np.float32)}},
   r"\(5, 2\) for lora/encoder/blocks_0/mlp/fc1/a, but this model needs \(8, 2\)"),
  ({"arrays": {f"{AT}blocks.0.mlp.fc1.lora_A.weight": np.ones(2, np.float32)}},
   r"lora_A has the shape \(2,\)"),
  ({"arrays": {f"{AT}layer.0.query.lora_A.weight": np.ones((2, 8), np.float32)}},
   "no layer layer.0.query here"),
  ({"arrays": {f"{AT}blocks.7.mlp.fc1.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}},
   "encoder/blocks_7/mlp/fc1 is no layer of this model"),
])
def test_what_cannot_be_read(tmp_path, change, message):
  folder = changed(tmp_path, **change)
  with pytest.raises(ValueError, match=f"The HF PEFT adapter .*: .*{message}"):
    peft_file.read(folder, TINY)


def test_a_folder_without_or_with_a_damaged_config(tmp_path):
  with pytest.raises(FileNotFoundError, match="holds no adapter_config.json"):
    peft_file.read(tmp_path, TINY)
  folder = changed(tmp_path)
  (folder / peft_file.CONFIG).write_text("[1")
  with pytest.raises(ValueError, match="adapter_config.json is no config of HF PEFT"):
    peft_file.read(folder, TINY)
  (folder / peft_file.ARRAYS).unlink()
  with pytest.raises(FileNotFoundError, match="adapter_model.safetensors does not exist"):
    peft_file.read(folder, TINY)


# The command.


def test_the_command_writes_a_folder_and_an_adapter_from_it(backbone_file, tmp_path, capsys):
  base, params, model = backbone_file
  tuned = Tuned(model, (LoRA(rank=2, sites=QKV, dropout=0.1),), sites(model, models.images(model)))
  own = tuned.init(jax.random.key(0), params)
  train, frozen = tuned.split({"params": params, **nest(drawn(flat(own), 1))})
  file, folder, again = (str(tmp_path / n) for n in ("a.safetensors", "peft", "b.safetensors"))
  adapter_file.save(file, train, tuned=tuned, base=base, model="vit_test", resize="bicubic_pil",
                    normalize="inception", class_names=["a", "b", "c"])
  assert cli.main(["peft", "export", file, folder]) == 0
  assert "timm.create_model('vit_test', num_classes=3)" in capsys.readouterr().out
  arguments = ["--model=vit_test", f"--base={base.name}", f"--out={again}"]
  assert cli.main(["peft", "import", folder, *arguments, "--class_names=a,b,c"]) == 0
  assert "rank=6" in capsys.readouterr().out
  loaded = adapter_file.load(again)
  assert loaded.labels == ("a", "b", "c")
  assert loaded.tuned.methods[0].dropout == 0.1 and loaded.tuned.methods[0].share == SHARED
  expected = tuned.merge(join(train, frozen))
  assert_same(flat(jax.tree.map(np.asarray, expected)), flat(loaded.merged()))
  assert cli.main(["peft", "import", folder, *arguments, "--class_names=a,b"]) == 2
  assert "--class_names has 2 names, but" in capsys.readouterr().err
  assert cli.main(["peft", "import", folder, *arguments, "--normalize=x"]) == 2
  assert "There is no normalize 'x'" in capsys.readouterr().err
  assert cli.main(["peft", "import", str(FILES / "lora"), *arguments]) == 2
  assert "python -m peft_jax peft: The HF PEFT adapter" in capsys.readouterr().err


@pytest.fixture
def backbone_file(backbone):
  model = models.create("vit_test", num_classes=3)
  params, base = weights.load(backbone, model, key=jax.random.key(0))
  return base, params, model
