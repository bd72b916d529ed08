"""Every layout of names leads to the same parameters; timm's names come back bit for bit.

files/names.json holds the names and shapes that timm and transformers really save, for small
models. The other layouts are written here from timm's, by hand, as the original programs name them.
"""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models
from peft_jax.tree import flat
from peft_jax.weights import names

NAMES = json.loads((pathlib.Path(__file__).parent / "files" / "names.json").read_text())
TIMM = [case for case in NAMES if case.startswith("timm/")]
HF = [case for case in NAMES if case.startswith("hf/")]
SWIN = [case for case in TIMM if "swin" in case]
CONVNEXT = [case for case in TIMM if "convnext" in case]
VIT = [case for case in TIMM if case not in SWIN + CONVNEXT]


def fabricated(shapes, seed=0):
  draw = np.random.RandomState(seed)
  return {k: draw.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def state(case, seed=0):
  return fabricated(NAMES[case], seed)


def same(got, want):
  assert got.keys() == want.keys(), sorted(got.keys() ^ want.keys())
  for name in want:
    assert got[name].dtype == want[name].dtype, name
    np.testing.assert_array_equal(got[name], want[name], err_msg=name)


# --- timm ------------------------------------------------------------------------------------

OPTIONS = {  # what the cases of names.json are among our models
  "timm/vit": {}, "timm/vit_avg": {"pool": "avg"},
  "timm/deit3": {"layer_scale": 1e-6, "no_embed_class": True},
  "timm/dinov2": {"layer_scale": 1e-5},
  "timm/dinov2_reg": {"layer_scale": 1e-5, "no_embed_class": True, "registers": 4},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_vits_fit_our_model(case):
  model = models.create("vit_test", num_classes=5, **OPTIONS[case])
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  want = {k: v.shape for k, v in flat(jax.eval_shape(model.init, jax.random.key(0), images)
                                      ["params"]).items()}
  got, skipped = names.translate(state(case))
  assert {k: v.shape for k, v in got.items()} == want and skipped == []


def linear(path, fan_in, fan_out, bias=True):
  return {f"{path}/kernel": (fan_in, fan_out)} | ({f"{path}/bias": (fan_out,)} if bias else {})


def norm(path, width):
  return {f"{path}/scale": (width,), f"{path}/bias": (width,)}


def swin_tree(widths=(12, 24, 48, 96), depths=(1, 2, 1, 1), heads=(1, 2, 4, 8), classes=5):
  out = {"patch_embed/proj/kernel": (4, 4, 3, widths[0]), "patch_embed/proj/bias": (widths[0],)}
  out |= norm("patch_embed/norm", widths[0]) | norm("norm", widths[-1])
  out |= linear("head", widths[-1], classes)
  for s, (c, depth, h) in enumerate(zip(widths, depths, heads, strict=True)):
    if s:
      out |= norm(f"stages_{s}/downsample/norm", 2 * c)
      out |= linear(f"stages_{s}/downsample/reduction", 2 * c, c, bias=False)
    for i in range(depth):
      at = f"stages_{s}/blocks_{i}"
      out |= norm(f"{at}/attn/norm", c) | norm(f"{at}/mlp/norm", c)
      for name in ("q", "k", "v", "proj"):
        out |= linear(f"{at}/attn/{name}", c, c)
      out |= {f"{at}/attn/rel_pos": (169, h)}
      out |= linear(f"{at}/mlp/fc1", c, 4 * c) | linear(f"{at}/mlp/fc2", 4 * c, c)
  return out


def convnext_tree(v2, widths=(8, 12, 16, 24), depths=(1, 2, 1, 1), classes=5):
  out = {"stem/conv/kernel": (4, 4, 3, widths[0]), "stem/conv/bias": (widths[0],)}
  out |= norm("stem/norm", widths[0]) | norm("norm", widths[-1])
  out |= linear("head", widths[-1], classes)
  for s, (c, depth) in enumerate(zip(widths, depths, strict=True)):
    if s:
      out |= norm(f"stages_{s}/downsample/norm", widths[s - 1])
      out |= {f"stages_{s}/downsample/conv/kernel": (2, 2, widths[s - 1], c),
              f"stages_{s}/downsample/conv/bias": (c,)}
    for i in range(depth):
      at = f"stages_{s}/blocks_{i}"
      out |= {f"{at}/dwconv/kernel": (7, 7, 1, c), f"{at}/dwconv/bias": (c,)}
      out |= norm(f"{at}/norm", c)
      out |= linear(f"{at}/fc1", c, 4 * c) | linear(f"{at}/fc2", 4 * c, c)
      out |= norm(f"{at}/grn", 4 * c) if v2 else {f"{at}/gamma": (c,)}
  return out


@pytest.mark.parametrize("case", SWIN + CONVNEXT)
def test_swin_and_convnext_have_the_documented_tree(case):
  got, skipped = names.translate(state(case))
  want = swin_tree() if case in SWIN else convnext_tree("v2" in case)
  assert {k: v.shape for k, v in got.items()} == want and skipped == []


def test_numbers_arrive_where_they_belong():
  w = state("timm/dinov2_reg")
  got, _ = names.translate(w)
  block = "encoder/blocks_1"
  for i, q in enumerate("qkv"):
    third = slice(24 * i, 24 * i + 24)
    np.testing.assert_array_equal(got[f"{block}/attn/{q}/kernel"],
                                  w["blocks.1.attn.qkv.weight"][third].T)
    np.testing.assert_array_equal(got[f"{block}/attn/{q}/bias"],
                                  w["blocks.1.attn.qkv.bias"][third])
  np.testing.assert_array_equal(got[f"{block}/mlp/fc2/kernel"], w["blocks.1.mlp.fc2.weight"].T)
  np.testing.assert_array_equal(got[f"{block}/attn/ls"], w["blocks.1.ls1.gamma"])
  np.testing.assert_array_equal(got[f"{block}/mlp/ls"], w["blocks.1.ls2.gamma"])
  np.testing.assert_array_equal(got[f"{block}/attn/norm/scale"], w["blocks.1.norm1.weight"])
  np.testing.assert_array_equal(got[f"{block}/mlp/norm/bias"], w["blocks.1.norm2.bias"])
  np.testing.assert_array_equal(got["reg_tokens"], w["reg_token"])
  kernel = w["patch_embed.proj.weight"]
  assert got["patch_embed/kernel"][3, 5, 2, 7] == kernel[7, 2, 3, 5]
  w = state("timm/swin")
  got, _ = names.translate(w)
  np.testing.assert_array_equal(got["stages_2/downsample/reduction/kernel"],
                                w["layers.2.downsample.reduction.weight"].T)
  np.testing.assert_array_equal(got["stages_1/blocks_1/attn/rel_pos"],
                                w["layers.1.blocks.1.attn.relative_position_bias_table"])
  np.testing.assert_array_equal(got["head/kernel"], w["head.fc.weight"].T)
  for case in ("timm/convnextv2", "timm/convnextv2_conv_mlp"):
    w = state(case)
    got, _ = names.translate(w)
    assert got["stages_1/blocks_1/dwconv/kernel"][1, 6, 0, 9] == w[
      "stages.1.blocks.1.conv_dw.weight"][9, 0, 1, 6]
    np.testing.assert_array_equal(got["stages_1/blocks_1/fc1/kernel"],
                                  w["stages.1.blocks.1.mlp.fc1.weight"].reshape(48, 12).T)
    np.testing.assert_array_equal(got["stages_1/blocks_1/grn/scale"],
                                  w["stages.1.blocks.1.mlp.grn.weight"])
    np.testing.assert_array_equal(got["norm/scale"], w["head.norm.weight"])
    np.testing.assert_array_equal(got["stages_1/downsample/norm/bias"],
                                  w["stages.1.downsample.0.bias"])


@pytest.mark.parametrize("case", TIMM)
def test_timm_names_come_back_bit_for_bit(case):
  want = state(case)
  got = names.to_timm(names.translate(want)[0], conv_mlp="conv_mlp" in case)
  same(got, want)


@pytest.mark.parametrize("seed", range(8))
def test_round_trips_of_any_size(seed):
  """Other widths, depths (two digits too) and stages than those of names.json."""
  draw = np.random.RandomState(seed)
  for case in TIMM:
    blocks, scale = int(draw.choice([1, 3, 12])), int(draw.choice([1, 2]))
    shapes = {}
    for name, shape in NAMES[case].items():
      wide = [n * scale if n > 7 else n for n in shape]
      for i in range(blocks):
        shapes[re.sub(r"blocks\.\d+\.", f"blocks.{i}.", name)] = wide
    want = fabricated(shapes, seed)
    params, skipped = names.translate(want)
    assert skipped == [] and not any("." in path for path in params)
    same(names.to_timm(params, conv_mlp="conv_mlp" in case), want)


def test_what_is_no_tree_of_ours_has_no_names_in_timm():
  with pytest.raises(ValueError, match="a tree of conv/kernel has no names in timm"):
    names.to_timm({"conv/kernel": np.zeros(1)})
  params = names.translate(state("timm/vit"))[0] | {"adapter/kernel": np.zeros((2, 2))}
  with pytest.raises(ValueError, match="no timm name for adapter/kernel in .* vit"):
    names.to_timm(params)


# --- the others, from timm's -----------------------------------------------------------------


def original_swin(w, window=7):
  out = {}
  for name, a in w.items():
    if m := re.fullmatch(r"layers\.(\d)\.downsample\.(.*)", name):
      name = f"layers.{int(m[1]) - 1}.downsample.{m[2]}"
    out[name.replace("head.fc.", "head.")] = a
  for name in list(out):
    if name.endswith("relative_position_bias_table"):
      index = name.replace("bias_table", "index")
      out[index] = np.zeros((window**2, window**2), np.int64)
  return out | {"layers.0.blocks.1.attn_mask": np.zeros((4, 49, 49), np.float32)}


def original_convnext(w):
  out = {}
  for name, a in w.items():
    name = re.sub(r"^stem\.", "downsample_layers.0.", name)
    name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
    name = name.replace(".blocks.", ".").replace("conv_dw", "dwconv")
    name = name.replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
    if ".grn." in name:
      name = name.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
      a = a.reshape(1, 1, 1, -1)
    out[name.replace("head.norm.", "norm.").replace("head.fc.", "head.")] = a
  return out


def ssf_convnext(w):
  new = {"stem.0": "stem.proj", "stem.1": "stem.norm", "downsample.0": "downsample.norm",
         "downsample.1": "downsample.proj"}
  return {re.sub("|".join(map(re.escape, new)), lambda m: new[m[0]], k): a for k, a in w.items()}


def clip(w):
  out = {}
  for name, a in w.items():
    if name in ("cls_token", "pos_embed"):
      a = a[0, 0] if name == "cls_token" else a[0]
    for old, new in (("patch_embed.proj", "conv1"), ("cls_token", "class_embedding"),
                     ("pos_embed", "positional_embedding"), ("norm_pre", "ln_pre"),
                     ("blocks.", "transformer.resblocks."), ("attn.qkv.", "attn.in_proj_"),
                     ("attn.proj", "attn.out_proj"), ("norm1", "ln_1"), ("norm2", "ln_2"),
                     ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
      name = name.replace(old, new)
    name = re.sub(r"^norm\.", "ln_post.", name)
    out[f"visual.{name}"] = a
  text = {"positional_embedding": (77, 8), "text_projection": (8, 4), "logit_scale": (),
          "token_embedding.weight": (99, 8), "ln_final.weight": (8,),
          "transformer.resblocks.0.attn.in_proj_weight": (24, 8)}
  out = {k: a for k, a in out.items() if not k.startswith("visual.head")}
  return out | fabricated(text) | {"visual.proj": np.zeros((24, 4), np.float32)}


def dinov2_original(w):
  out = {k.replace("reg_token", "register_tokens"): a for k, a in w.items()}
  return out | {"mask_token": np.zeros((1, 24), np.float32)}


def deit3_original(w):
  return {re.sub(r"ls(\d)\.gamma", r"gamma_\1", k): a for k, a in w.items()}


def mae_pretraining(w):
  extra = {"mask_token": (1, 1, 8), "decoder_pos_embed": (1, 17, 8),
           "decoder_embed.weight": (8, 24), "decoder_blocks.0.norm1.weight": (8,),
           "decoder_pred.bias": (9,)}
  return {k: a for k, a in w.items() if not k.startswith("head")} | fabricated(extra)


def moco_pretraining(w):
  out = {f"module.base_encoder.{k}": a for k, a in w.items() if not k.startswith("head")}
  out |= {k.replace("base", "momentum"): a + 1 for k, a in out.items()}
  return out | fabricated({"module.base_encoder.head.0.weight": (9, 24),
                           "module.base_encoder.head.1.running_mean": (9,),
                           "module.predictor.0.weight": (9, 9)}) | {
    "module.base_encoder.head.1.num_batches_tracked": np.int64(3)}


def moco_linear(w):
  return {f"module.{k}": a for k, a in w.items()}


def simmim(w):
  out = {f"encoder.{k}": a for k, a in original_swin(w).items() if not k.startswith("head")}
  return out | fabricated({"encoder.mask_token": (1, 1, 12), "decoder.0.weight": (48, 96, 1, 1)})


WRITTEN = [
  (original_swin, SWIN, "original_swin"), (simmim, SWIN, "original_swin"),
  (original_convnext, ["timm/convnext", "timm/convnextv2"], "original_convnext"),
  (ssf_convnext, ["timm/convnext"], "timm_convnext"),
  (clip, ["timm/clip"], "clip"),
  (dinov2_original, ["timm/dinov2", "timm/dinov2_reg"], "timm_vit"),
  (deit3_original, ["timm/deit3"], "timm_vit"),
  (mae_pretraining, ["timm/vit"], "timm_vit"),
  (moco_pretraining, ["timm/vit"], "timm_vit"), (moco_linear, ["timm/vit"], "timm_vit"),
]


@pytest.mark.parametrize("write, case, layout", [
  (write, case, layout) for write, cases, layout in WRITTEN for case in cases])
def test_other_layouts_mean_the_same(write, case, layout):
  want, _ = names.translate(state(case))
  arrays = write(state(case))
  assert names.layout(arrays) == layout
  got, skipped = names.translate(arrays)
  gone = {path for path in want if path.startswith("head")} - got.keys()
  same(got, {k: v for k, v in want.items() if k not in gone})
  counted = [name for name in arrays if any(s.startswith(f"{name}: ") for s in skipped)]
  assert len(counted) == len(skipped)
  split = sum(2 for name in arrays if re.search(r"qkv|in_proj", name) and name not in counted)
  assert len(got) == len(arrays) + split - len(skipped)


# The outputs of these models in transformers and of timm's after this mapping and back agree to
# 3e-6 (transformers 5.23, timm 1.0.31, random weights).
FAMILIES = {"vit": "hf_vit", "deit": "hf_vit", "dinov2": "hf_vit", "swin": "hf_swin",
            "convnext": "hf_convnext", "convnextv2": "hf_convnext"}


@pytest.mark.parametrize("case", HF)
def test_files_of_hugging_face(case):
  arrays = state(case)
  kind = case.removeprefix("hf/").split("_")[0]
  assert names.layout(arrays) == FAMILIES[kind]
  got, skipped = names.translate(arrays)
  assert not any("." in path for path in got)
  assert len(got) + len(skipped) == len(arrays)
  if kind in ("swin", "convnext", "convnextv2"):
    want = swin_tree(classes=2) if kind == "swin" else convnext_tree(kind[-1] == "2", classes=2)
    if "bare" in case:
      want = {k: v for k, v in want.items() if not k.startswith("head")}
    assert {k: v.shape for k, v in got.items()} == want and skipped == []
  else:
    timm = {"deit": "deit_distilled", "dinov2": "dinov2"}.get(kind, "vit")
    want = {k: v.shape for k, v in names.translate(state(f"timm/{timm}"))[0].items()}
    if case == "hf/dinov2_reg":
      want |= {"reg_tokens": (1, 4, 24)}
    for path, shape in want.items():
      assert path.startswith("head") or got[path].shape == shape
    assert {p for p in got.keys() ^ want.keys() if not p.startswith("head")} == set()
  block = {"vit": "vit.encoder.layer.1.", "swin": "swin.encoder.layers.1.blocks.1."}.get(
    case.removeprefix("hf/"))
  if block:
    ours = "encoder/blocks_1" if kind == "vit" else "stages_1/blocks_1"
    middle = "attention" if kind == "vit" else "self"
    for theirs, path in ((f"attention.{middle}.key", "attn/k"), ("output.dense", "mlp/fc2"),
                         ("attention.output.dense", "attn/proj"),
                         ("intermediate.dense", "mlp/fc1")):
      np.testing.assert_array_equal(got[f"{ours}/{path}/kernel"],
                                    arrays[f"{block}{theirs}.weight"].T)
    np.testing.assert_array_equal(got[f"{ours}/mlp/norm/scale"],
                                  arrays[f"{block}layernorm_after.weight"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "model.", "encoder."])
@pytest.mark.parametrize("case", ["timm/vit", "timm/swin", "timm/convnext"])
def test_wrapped_names(prefix, case):
  got, _ = names.translate({prefix + k: a for k, a in state(case).items()})
  same(got, names.translate(state(case))[0])


# --- refusals --------------------------------------------------------------------------------


def test_what_no_rule_knows_stays_under_its_name():
  for case in (*TIMM, *HF):
    got, _ = names.translate(state(case) | {"surprise.weight": np.zeros((2, 2), np.float32)})
    assert got["surprise.weight"].shape == (2, 2)


@pytest.mark.parametrize("name, what", [
  ("image_encoder.patch_embed.proj.weight", "SAM"),
  ("module.base_encoder.patch_embed.proj.0.weight", "convolutional stem"),
  ("layers.0.blocks.0.attn.logit_scale", "Swin V2"),
  ("blocks.0.mlp.w12.weight", "gated"),
  ("conv_root/kernel", "hybrid"),
])
def test_known_models_that_are_not_here_are_named(name, what):
  with pytest.raises(ValueError, match=f"this is .*{what}.*not among the models here"):
    names.translate({name: np.zeros(1)})


def test_unknown_and_doubled_names_are_refused():
  with pytest.raises(ValueError, match="no patch embedding .*timm_vit.*first names are a, b"):
    names.translate({"b": np.zeros(1), "a": np.zeros(1)})
  with pytest.raises(ValueError, match="two of its tensors are reg_token"):
    names.translate(state("timm/dinov2_reg") | {"register_tokens": np.zeros((1, 4, 24))})
  w = state("timm/vit")
  with pytest.raises(ValueError, match="two of its tensors are encoder/blocks_0/attn/q/kernel"):
    names.translate(w | {"blocks.0.attn.q.weight": np.zeros((24, 24))})


def moco_table(width, side):
  """The table MoCo v3 builds (vits.py, build_2d_sincos_position_embedding), row by row."""
  omega = 1.0 / 10000 ** (np.arange(width // 4) / (width // 4))
  table = np.zeros((1, 1 + side * side, width), np.float32)
  for row in range(side):
    for column in range(side):
      angles = [np.sin(row * omega), np.cos(row * omega), np.sin(column * omega),
                np.cos(column * omega)]
      table[0, 1 + row * side + column] = np.concatenate(angles)
  return table


def test_the_vit_s_of_moco_has_twelve_heads():
  w = state("timm/vit")
  w["pos_embed"] = moco_table(384, 4)
  names.translate(w, 12)
  for write in (lambda w: w, moco_linear, moco_pretraining):
    with pytest.raises(ValueError, match="the file has 12 attention heads, the model 6"):
      names.translate(write(w), 6)
  w["pos_embed"] = np.float32(np.random.RandomState(0).standard_normal((1, 17, 384)))
  names.translate(w, 6)
  mae = moco_table(384, 4)
  w["pos_embed"] = np.concatenate([mae[..., 192:], mae[..., :192]], -1)  # rows and columns swapped
  names.translate(w, 6)
  w["pos_embed"] = moco_table(768, 4)
  names.translate(w, 6)


# --- Google ----------------------------------------------------------------------------------


def big_vision(params, depth=2, heads=3):
  """The names of big_vision's checkpoints with scanned blocks, from our flat tree."""
  out = {"params/embedding/kernel": params["patch_embed/kernel"],
         "params/embedding/bias": params["patch_embed/bias"], "params/cls": params["cls_token"],
         "params/pos_embedding": params["pos_embed"][:, 1:]}
  for leaf in ("scale", "bias"):
    out[f"params/Transformer/encoder_norm/{leaf}"] = params[f"norm/{leaf}"]
  block = {"LayerNorm_0/scale": "attn/norm/scale", "LayerNorm_0/bias": "attn/norm/bias",
           "LayerNorm_1/scale": "mlp/norm/scale", "LayerNorm_1/bias": "mlp/norm/bias"}
  for i in (0, 1):
    for leaf in ("kernel", "bias"):
      block[f"MlpBlock_0/Dense_{i}/{leaf}"] = f"mlp/fc{i + 1}/{leaf}"
  for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "proj")):
    for leaf in ("kernel", "bias"):
      block[f"MultiHeadDotProductAttention_0/{theirs}/{leaf}"] = f"attn/{ours}/{leaf}"
  for theirs, ours in block.items():
    stack = np.stack([params[f"encoder/blocks_{i}/{ours}"] for i in range(depth)])
    if re.search("query|key|value", theirs):
      stack = stack.reshape(*stack.shape[:-1], heads, -1)
    elif theirs.endswith("out/kernel"):
      stack = stack.reshape(depth, heads, -1, stack.shape[-1])
    out[f"params/Transformer/encoderblock/{theirs}"] = stack
  return out | {"params/MAPHead_0/probe": np.zeros((1, 1, 24), np.float32)}


def test_blocks_stacked_by_a_scan():
  params, _ = names.translate(state("timm/vit"))
  arrays = big_vision(params)
  assert names.layout(arrays) == "google"
  got, _ = names.translate(arrays, 3)
  want = {k: v for k, v in params.items() if not k.startswith("head")}
  want["pos_embed"] = params["pos_embed"][:, 1:]
  assert got.pop("map_head/probe").shape == (1, 1, 24)
  same(got, want)
  with pytest.raises(ValueError, match="3 attention heads, the model 4"):
    names.translate(arrays, 4)
