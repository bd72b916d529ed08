"""weights inspect and convert, from files in foreign names and back."""

import json
import pathlib

import jax
import numpy as np
import pytest

from peft_jax import models, safetensors, weights
from peft_jax.weights import command, names, npz, reader

NAMES = json.loads((pathlib.Path(__file__).parent / "files" / "names.json").read_text())


def written(path, case, **more):
  draw = np.random.RandomState(0)
  arrays = {k: draw.standard_normal(s).astype(np.float32) for k, s in NAMES[case].items()}
  safetensors.write(path, arrays | more)
  return arrays


def test_inspect(tmp_path, capsys):
  file = tmp_path / "w.safetensors"
  arrays = written(file, "hf/vit_bare")
  assert command.main(["inspect", str(file)]) == 0
  out = capsys.readouterr().out
  lines = out.splitlines()
  assert "embeddings.patch_embeddings.projection.weight" in out and "24 x 3 x 8 x 8" in out
  total = sum(a.size for a in arrays.values())
  assert f"w.safetensors: safetensors, 40 tensors, {total:,} numbers" in out
  assert npz.sha256(file) in out and "layout: hf_vit" in lines
  assert "skipped: pooler.dense.bias: the pooler" in lines
  assert lines[-1].startswith("models: vit_test fits")


def test_inspect_says_what_differs(tmp_path, capsys):
  file = tmp_path / "w.safetensors"
  written(file, "timm/dinov2", surprise=np.zeros(3, np.float32))
  command.main(["inspect", str(file)])
  last = capsys.readouterr().out.splitlines()[-1]
  assert last.startswith("models: vit_test but for 0 of its") and "5 of the file's" in last
  np.savez(tmp_path / "w.npz", a=np.zeros(2))
  command.main(["inspect", str(tmp_path / "w.npz")])
  assert capsys.readouterr().out.splitlines()[-1] == "layout: unknown"


@pytest.mark.parametrize("case", ["timm/vit", "timm/swin", "timm/convnext_conv_mlp",
                                  "timm/convnextv2", "timm/deit_distilled", "timm/clip"])
def test_convert_to_ours_and_back(case, tmp_path):
  file, ours, back = (str(tmp_path / n) for n in ("w.safetensors", "w.npz", "back.safetensors"))
  want = written(file, case)
  command.main(["convert", file, ours])
  assert names.layout(npz.read(ours)) == "ours"
  command.main(["convert", file, back])
  got = reader.read(back)
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(got[name], want[name])


def test_converted_weights_load(tmp_path, capsys):
  file, ours = str(tmp_path / "w.safetensors"), str(tmp_path / "w.npz")
  want = written(file, "hf/vit")
  command.main(["convert", file, ours, "--model=vit_test"])
  params, _ = weights.load(ours, models.create("vit_test", num_classes=3), key=jax.random.key(0))
  np.testing.assert_array_equal(params["encoder"]["blocks_1"]["attn"]["v"]["bias"],
                                want["vit.encoder.layer.1.attention.attention.value.bias"])
  np.testing.assert_array_equal(npz.read(ours)["head/bias"], want["classifier.bias"])


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_half_the_bytes_and_no_head(suffix, tmp_path):
  file, out = str(tmp_path / "w.safetensors"), str(tmp_path / f"half.{suffix}")
  arrays = written(file, "timm/vit")
  command.main(["convert", file, out, "--no-head", "--dtype=float16"])
  half = np.load(out) if suffix == "npz" else safetensors.read(out)[0]
  assert not any("head" in name for name in half) and len(half) > 10
  assert {half[name].dtype for name in half} == {np.dtype("float16")}
  got = names.to_timm(reader.read(out)) if suffix == "npz" else reader.read(out)
  assert got.keys() == {name for name in arrays if not name.startswith("head")}
  for name in got:
    np.testing.assert_array_equal(got[name], arrays[name].astype(np.float16).astype(np.float32))
  written(file, "timm/vit", **{"norm.bias": np.full(24, 7e4, np.float32)})
  with pytest.raises(ValueError, match="norm/bias holds 7e.04, more than float16 can hold"):
    command.main(["convert", file, str(tmp_path / f"o.{suffix}"), "--dtype=float16"])
  assert not list(tmp_path.glob("o.*"))


def test_mistakes(tmp_path, capsys):
  file = str(tmp_path / "w.safetensors")
  written(file, "timm/vit", **{"surprise.weight": np.zeros((2, 2), np.float32)})
  with pytest.raises(ValueError, match="holds surprise.weight, which no model here has"):
    command.main(["convert", file, str(tmp_path / "o.npz")])
  with pytest.raises(ValueError, match="does not fit the model; unknown .* surprise.weight"):
    command.main(["convert", file, str(tmp_path / "o.npz"), "--model=vit_test"])
  with pytest.raises(ValueError, match="o.pth must end in .npz"):
    command.main(["convert", file, str(tmp_path / "o.pth")])
  with pytest.raises(FileNotFoundError, match="no weights file .*absent.pth"):
    command.main(["inspect", str(tmp_path / "absent.pth")])
  with pytest.raises(SystemExit):
    command.main(["convert", file])
  assert not list(tmp_path.glob("o.*")) and "OUT" in capsys.readouterr().err
