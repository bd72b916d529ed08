"""Files in three layouts become parameters; every tensor is accounted for; damage is named."""

import functools
import pickle
import struct
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from peft_jax import models, safetensors, weights
from peft_jax.tree import flat
from peft_jax.weights import npz, table
from peft_jax.weights.load import relative

KEY = jax.random.key(7)


@functools.cache
def create(**options):
  return models.create("vit_test", **{"num_classes": 5, **options})


def random_params(seed=0, **options):
  model = create(**options)
  s = model.image_size
  shapes = jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, s, s, 3), jnp.float32))
  draw = np.random.RandomState(seed)
  return jax.tree.map(lambda x: draw.standard_normal(x.shape).astype(np.float32), shapes["params"])


def google_file(params, old=True, prefix=""):
  """The arrays Google's code would save for these parameters, by hand."""
  a, norms, m = ("_1", ("_0", "_2"), "_3") if old else ("_0", ("_0", "_1"), "_0")
  out = {
    "cls": params["cls_token"], "Transformer/posembed_input/pos_embedding": params["pos_embed"],
    "embedding/kernel": params["patch_embed"]["kernel"],
    "embedding/bias": params["patch_embed"]["bias"],
    "Transformer/encoder_norm/scale": params["norm"]["scale"],
    "Transformer/encoder_norm/bias": params["norm"]["bias"],
    "head/kernel": np.zeros((24, 21843), np.float32), "head/bias": np.zeros(21843, np.float32),
    "pre_logits/kernel": np.zeros((24, 24), np.float32), "pre_logits/bias": np.zeros(24, "f4"),
  }
  for i in range(2):
    block, at = params["encoder"][f"blocks_{i}"], f"Transformer/encoderblock_{i}"
    for branch, number in zip(("attn", "mlp"), norms, strict=True):
      for leaf in ("scale", "bias"):
        out[f"{at}/LayerNorm{number}/{leaf}"] = block[branch]["norm"][leaf]
    attention = f"{at}/MultiHeadDotProductAttention{a}"
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
      out[f"{attention}/{theirs}/kernel"] = block["attn"][ours]["kernel"].reshape(24, 3, 8)
      out[f"{attention}/{theirs}/bias"] = block["attn"][ours]["bias"].reshape(3, 8)
    out[f"{attention}/out/kernel"] = block["attn"]["proj"]["kernel"].reshape(3, 8, 24)
    out[f"{attention}/out/bias"] = block["attn"]["proj"]["bias"]
    for j in (0, 1):
      for leaf in ("kernel", "bias"):
        out[f"{at}/MlpBlock{m}/Dense_{j}/{leaf}"] = block["mlp"][f"fc{j + 1}"][leaf]
  return {prefix + k: v for k, v in out.items()}


def timm_file(params):
  """The state dict timm would save, by hand."""
  out = {"cls_token": params["cls_token"], "pos_embed": params["pos_embed"],
         "patch_embed.proj.weight": params["patch_embed"]["kernel"].transpose(3, 2, 0, 1),
         "patch_embed.proj.bias": params["patch_embed"]["bias"],
         "norm.weight": params["norm"]["scale"], "norm.bias": params["norm"]["bias"],
         "head.weight": np.zeros((7, 24), "f4"), "head.bias": np.zeros(7, "f4")}
  for i in range(2):
    attn, mlp = (params["encoder"][f"blocks_{i}"][b] for b in ("attn", "mlp"))
    out[f"blocks.{i}.attn.qkv.weight"] = np.concatenate([attn[n]["kernel"].T for n in "qkv"])
    out[f"blocks.{i}.attn.qkv.bias"] = np.concatenate([attn[n]["bias"] for n in "qkv"])
    linear = {"attn.proj": attn["proj"], "mlp.fc1": mlp["fc1"], "mlp.fc2": mlp["fc2"]}
    for name, layer in linear.items():
      out[f"blocks.{i}.{name}.weight"] = layer["kernel"].T
      out[f"blocks.{i}.{name}.bias"] = layer["bias"]
    for name, branch in (("norm1", attn), ("norm2", mlp)):
      out[f"blocks.{i}.{name}.weight"] = branch["norm"]["scale"]
      out[f"blocks.{i}.{name}.bias"] = branch["norm"]["bias"]
  return out


def pickled(state):
  """The pickle torch.save makes of a state dict, written out (see torch_file_test.py)."""
  def text(s):
    return b"X" + struct.pack("<I", len(s)) + s.encode()

  def tuple_of(numbers):
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"

  out = b"\x80\x02}" + text("state_dict") + b"}("
  for key, (name, a) in enumerate(state.items()):
    out += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
    out += b"ctorch\nFloatStorage\n" + text(str(key)) + text("cpu") + b"J"
    out += struct.pack("<i", a.size) + b"tQK\x00" + tuple_of(a.shape)
    out += tuple_of(n // 4 for n in a.strides) + b"\x89}tR"
  return out + b"us."


def saved_by_torch(path, state):
  state = {k: np.ascontiguousarray(a) for k, a in state.items()}
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("archive/data.pkl", pickled(state))
    for key, a in enumerate(state.values()):
      file.writestr(f"archive/data/{key}", a.tobytes())


def saved(tmp_path, arrays, name="w.npz"):
  np.savez(tmp_path / name, **arrays)
  return str(tmp_path / name)


def assert_same_backbone(got, want):
  got, want = ({k: v for k, v in flat(t).items() if not k.startswith("head")} for t in (got, want))
  assert got.keys() == want.keys()
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], err_msg=path)


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/", "params/img/"])
@pytest.mark.parametrize("old", [True, False], ids=["old", "linen"])
def test_google_files(tmp_path, old, prefix):
  want = random_params()
  arrays = google_file(want, old, prefix)
  if prefix == "opt/target/":
    arrays |= {"opt/state/step": np.int64(3)}
  got, base = weights.load(saved(tmp_path, arrays), create(), 32, key=KEY)
  assert_same_backbone(got, want)
  assert base.source.endswith("w.npz") and base.sha256 == npz.sha256(base.source)
  assert base.fingerprint == weights.fingerprint(want)
  assert len(base.skipped) == 4 + (prefix == "opt/target/") and base.resized == ()


def test_timm_files(tmp_path):
  want = random_params()
  got, _ = weights.load(saved(tmp_path, timm_file(want)), create(), key=KEY)
  assert_same_backbone(got, want)


@pytest.mark.parametrize("suffix", ["pth.tar", "npz"])
def test_the_content_decides_not_the_suffix(tmp_path, suffix):
  want, path = random_params(), tmp_path / f"w.{suffix}"
  for write in (lambda: saved_by_torch(path, timm_file(want)),
                lambda: safetensors.write(path, timm_file(want)),
                lambda: path.write_bytes(open(saved(tmp_path, timm_file(want), "n.npz"),
                                              "rb").read())):
    write()
    got, base = weights.load(path, create(), key=KEY)
    assert_same_backbone(got, want)
    assert base.sha256 == npz.sha256(path) and len(base.skipped) == 2


def test_what_the_layout_skips_is_reported(tmp_path):
  want = random_params()
  state = {f"module.base_encoder.{k}": a for k, a in timm_file(want).items()}
  state |= {f"module.momentum_encoder.{k}": a + 1 for k, a in timm_file(want).items()}
  saved_by_torch(tmp_path / "w.pth", state)
  got, base = weights.load(tmp_path / "w.pth", create(), key=KEY)
  assert_same_backbone(got, want)
  assert sum("the momentum encoder of MoCo" in s for s in base.skipped) == len(state) // 2
  assert sum("the projector of MoCo" in s for s in base.skipped) == 2


def test_the_first_dinov2_with_registers(tmp_path):
  """Its table has a row for the class token; timm's and ours have none."""
  options = {"registers": 4, "no_embed_class": True, "layer_scale": 1.0}
  want = random_params(**options)
  state = timm_file(want) | {"register_tokens": want["reg_tokens"],
                             "mask_token": np.zeros((1, 24), "f4")}
  for i in range(2):
    for j, branch in ((1, "attn"), (2, "mlp")):
      state[f"blocks.{i}.ls{j}.gamma"] = want["encoder"][f"blocks_{i}"][branch]["ls"]
  row = np.random.RandomState(3).standard_normal((1, 1, 24)).astype(np.float32)
  state["pos_embed"] = np.concatenate([row, want["pos_embed"]], 1)
  state["cls_token"] = want["cls_token"] - row
  saved_by_torch(tmp_path / "w.pth", state)
  got, base = weights.load(tmp_path / "w.pth", create(**options), key=KEY)
  np.testing.assert_allclose(got["cls_token"], want["cls_token"], atol=1e-6)
  assert_same_backbone({**got, "cls_token": 0}, {**want, "cls_token": 0})
  assert base.resized == ("pos_embed: its class row was added to cls_token",)
  assert base.skipped[0] == "mask_token: only used in pre-training"


def test_swins_tables_of_relative_positions_are_resized_as_in_swins_code():
  old = np.random.RandomState(0).standard_normal((13 * 13, 4)).astype(np.float32)
  path = "stages_0/blocks_0/attn/rel_pos"
  got, want = {path: old}, {path: (23 * 23, 4)}
  assert relative(got, want, "bicubic_clamped") == [
    f"{path}: 13 x 13 to 23 x 23, bicubic_clamped"]
  np.testing.assert_array_equal(got[path], table.resize(old[None], 23, "bicubic_clamped")[0])
  got, want = {path: old}, {path: (13 * 13, 4)}
  assert relative(got, want, "bicubic_clamped") == [] and got[path] is old


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_our_files_in_both_layouts(tmp_path, loop):
  want = random_params()
  weights.save(tmp_path / "w.npz", want if loop == "python" else models.stack_blocks(want))
  for other in ("python", "scan"):
    got, base = weights.load(str(tmp_path / "w.npz"), create(loop=other), key=KEY)
    assert ("blocks" in got["encoder"]) == (other == "scan")
    assert_same_backbone(models.unstack_blocks(got), want)
    assert base.fingerprint == weights.fingerprint(want)
  assert [f.name for f in tmp_path.iterdir()] == ["w.npz"]


def test_the_head_is_fresh_and_reproducible(tmp_path):
  path = saved(tmp_path, google_file(random_params()))
  model = create(num_classes=2000)
  heads = [weights.load(path, model, key=jax.random.key(i))[0]["head"] for i in (0, 0, 1)]
  assert abs(float(jnp.std(heads[0]["kernel"])) - 0.02) < 5e-4
  assert float(jnp.abs(heads[0]["kernel"]).max()) < 0.046
  assert not heads[0]["bias"].any()
  assert (heads[0]["kernel"] == heads[1]["kernel"]).all()
  assert (heads[0]["kernel"] != heads[2]["kernel"]).any()


def test_half_precision_is_widened(tmp_path):
  want = random_params()
  for dtype in (np.float16, ml_dtypes.bfloat16):
    arrays = {k: v.astype(dtype) for k, v in google_file(want).items()}
    got, _ = weights.load(saved(tmp_path, arrays), create(), key=KEY)
    kernel = want["encoder"]["blocks_1"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(got["encoder"]["blocks_1"]["mlp"]["fc1"]["kernel"],
                                  kernel.astype(dtype).astype(np.float32))


def test_mean_pooling_norms_afresh(tmp_path):
  path = saved(tmp_path, google_file(random_params()))
  got, base = weights.load(path, create(pool="avg"), key=KEY)
  assert (got["fc_norm"]["scale"] == 1).all() and not got["fc_norm"]["bias"].any()
  assert "norm" not in got and sum("fc_norm" in s for s in base.skipped) == 2
  trained = random_params(pool="avg")
  weights.save(tmp_path / "avg.npz", trained)
  got, _ = weights.load(str(tmp_path / "avg.npz"), create(pool="avg"), key=KEY)
  assert_same_backbone(got, trained)


def test_tables_with_and_without_the_class_row_mean_the_same(tmp_path):
  path = saved(tmp_path, google_file(random_params()))
  x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 32, 32, 3)), jnp.float32)
  joint, split = create(num_classes=0), create(num_classes=0, no_embed_class=True)
  a, _ = weights.load(path, joint, key=KEY)
  b, base = weights.load(path, split, key=KEY)
  assert base.resized == ("pos_embed: its class row was added to cls_token",)
  y = jax.jit(joint.apply)({"params": a}, x)
  np.testing.assert_allclose(y, jax.jit(split.apply)({"params": b}, x), atol=1e-5)
  weights.save(tmp_path / "split.npz", b)
  c, _ = weights.load(str(tmp_path / "split.npz"), joint, key=KEY)
  np.testing.assert_allclose(y, jax.jit(joint.apply)({"params": c}, x), atol=1e-5)


def test_another_image_size_resizes_the_table_only(tmp_path):
  want = random_params()
  path, model = saved(tmp_path, google_file(want)), create(image_size=56)
  got, base = weights.load(path, model, 56, key=KEY)
  assert got["pos_embed"].shape == (1, 50, 24)
  assert base.resized == ("pos_embed: 4 x 4 to 7 x 7, bicubic_aa",)
  assert base.fingerprint == weights.fingerprint(want)
  other, base = weights.load(path, model, key=KEY, table="bilinear_corners")
  assert jnp.abs(other["pos_embed"] - got["pos_embed"]).max() > 0.1 and "corners" in base.resized[0]


def test_fingerprint_sees_the_backbone_only():
  params = random_params()
  same = {**params, "head": {"bias": np.ones(3, "f4")}, "pos_embed": np.zeros((1, 5, 24), "f4")}
  assert weights.fingerprint(same) == weights.fingerprint(params)
  assert weights.fingerprint(models.stack_blocks(params)) == weights.fingerprint(params)
  cls = params["cls_token"].copy()
  cls[0, 0, 0] = np.nextafter(cls[0, 0, 0], np.float32(9))
  assert weights.fingerprint({**params, "cls_token": cls}) != weights.fingerprint(params)


def test_random_is_the_same_in_every_loop():
  a, base = weights.load("random", create(), 32, key=KEY)
  b, other = weights.load("random", create(loop="scan"), 32, key=KEY)
  c, third = weights.load("random", create(), 32, key=jax.random.key(8))
  assert_same_backbone(models.unstack_blocks(b), a)
  assert base == other != third and base.source == "random" and base.sha256 == ""
  assert jnp.std(a["head"]["kernel"]) > 0.01


def refuses(tmp_path, arrays, *sentences, **options):
  with pytest.raises(ValueError) as error:
    weights.load(saved(tmp_path, arrays), create(**options), key=KEY)
  for sentence in ("w.npz", *sentences):
    assert sentence in str(error.value)


def test_both_sides_are_listed(tmp_path):
  arrays = google_file(random_params())
  del arrays["Transformer/encoderblock_1/LayerNorm_0/bias"]
  arrays["Transformer/encoderblock_1/LayerNorm_7/bias"] = np.zeros(24, np.float32)
  arrays["embedding/bias"] = np.zeros(25, np.float32)
  refuses(tmp_path, arrays, "missing from the file: encoder/blocks_1/attn/norm/bias [24]",
          "unknown to the model: Transformer/encoderblock_1/LayerNorm_7/bias [24]",
          "patch_embed/bias [25] instead of [24]")


def test_other_models_are_refused(tmp_path):
  arrays = google_file(random_params())
  refuses(tmp_path, arrays, "3 attention heads, the model 4", heads=4)
  refuses(tmp_path, arrays, "missing from the file: encoder/blocks_2/", depth=3)
  refuses(tmp_path, arrays, "unknown to the model: encoder/blocks_1/", depth=1)
  refuses(tmp_path, arrays, "encoder/blocks_0/attn/ls [24]", layer_scale=1.0)
  refuses(tmp_path, arrays, "reg_tokens [1, 2, 24]", registers=2)
  arrays["Transformer/posembed_input/pos_embedding"] = np.zeros((1, 15, 24), np.float32)
  refuses(tmp_path, arrays, "15 rows")
  refuses(tmp_path, {"a": np.zeros(1)}, "no patch embedding", "names are a")
  whole = google_file(random_params())
  refuses(tmp_path, whole | {"cls": np.zeros((1, 1, 24), int)}, "cls_token int64")


def test_specs_and_sizes_are_refused(tmp_path):
  with pytest.raises(ValueError, match="neither one of 'random', 'dinov2_vits14'"):
    weights.load("dinov3", create(), key=KEY)
  with pytest.raises(ValueError, match="created for 32 pixels"):
    weights.load("random", create(), 64, key=KEY)
  with pytest.raises(FileNotFoundError, match="no weights file .*absent.npz"):
    weights.load(str(tmp_path / "absent.npz"), create(), key=KEY)
  with pytest.raises(ValueError, match="table='nearest'"):
    path = saved(tmp_path, google_file(random_params()))
    weights.load(path, create(image_size=40), key=KEY, table="nearest")
  with pytest.raises(ValueError, match="saved as .npz"):
    weights.save(tmp_path / "w.bin", random_params())


class Bomb:
  def __reduce__(self):
    return print, ("unpickled",)


def test_damaged_files_are_named(tmp_path, capsys):
  path = tmp_path / "w.npz"
  whole = open(saved(tmp_path, google_file(random_params())), "rb").read()
  changed = bytearray(whole)
  changed[len(whole) // 2] ^= 255
  np.savez(tmp_path / "objects.npz", a=np.array([Bomb()], dtype=object))
  np.save(tmp_path / "lone.npy", np.zeros(3))
  files = [b"", b"PK", b"not a zip", bytes(changed), pickle.dumps(Bomb()),
           (tmp_path / "objects.npz").read_bytes()]
  files += [whole[:len(whole) * i // 10] for i in range(1, 10)] + [whole[:-1]]
  for data in files:
    path.write_bytes(data)
    with pytest.raises(ValueError, match="w.npz is damaged or no .npz file"):
      weights.load(str(path), create(), key=KEY)
  assert "unpickled" not in capsys.readouterr().out
  with pytest.raises(ValueError, match=r"lone.npy is a single .npy array: save a dictionary"):
    weights.load(str(tmp_path / "lone.npy"), create(), key=KEY)
