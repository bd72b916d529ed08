"""Adapters trained here, used by HF PEFT on timm's model, and the other way: logits of both.

    pip install torch timm peft
    python benchmarks/to_peft.py                       # a few minutes
    python benchmarks/to_peft.py --models=swin_tiny_patch4_window7_224 --only=dora

Weights and adapter are drawn at random, every number of them moved. There: an adapter file goes
through `python -m peft_jax peft export` and PeftModel.from_pretrained. Back: what save_pretrained
wrote goes through `peft import` and peft_jax.load. Logits are compared on random images in float32.
"""

import argparse
import contextlib
import io
import pathlib
import tempfile

import jax
import numpy as np
from to_timm import ALLOWED, CLASSES, in_torch, moved, size_of, timm_model

import peft_jax
from peft_jax import __main__ as program
from peft_jax import adapter_file, models, weights
from peft_jax.methods import DoRA, LoRA
from peft_jax.sites import sites
from peft_jax.tree import flat
from peft_jax.tuned import Tuned, join
from peft_jax.weights import names

QKV = ("q", "k", "v")
LINEAR = r".*/(attn/[qkv]|attn/proj|mlp/fc\d|fc\d)"
ATTENTION = r".*/attn/[qkv]"
# Cases that name layers of an attention are left out for a ConvNeXt.
THERE = {
  "all linear": LoRA(rank=4, alpha=6.0, sites=LINEAR),
  "and convolutions": LoRA(rank=3, alpha=6.0, sites="(?!.*dwconv).*"),
  "one A": LoRA(rank=4, sites=ATTENTION, share=QKV),
  "q and v": LoRA(rank=4, sites=".*/attn/[qv]"),
  "patterns": LoRA(rank=4, sites=LINEAR, rslora=True, rank_pattern=("blocks_0/.*=3", "fc1=2"),
                   alpha_pattern=("q=3", "fc2=5.5")),
  "dora": DoRA(rank=4, alpha=6.0, sites=LINEAR),
  "dora, one A": DoRA(rank=4, sites=ATTENTION, share=QKV),
  "dora, convolutions": DoRA(rank=3, sites="(?!.*dwconv).*"),
}
BACK = {
  "all linear": dict(target_modules=["qkv", "attn.proj", "fc1", "fc2"]),
  "and convolutions": dict(target_modules=["qkv", "fc2", "patch_embed.proj", "stem.0"]),
  "patterns": dict(target_modules=["qkv", "fc1", "fc2"], use_rslora=True,
                   rank_pattern={"blocks.0.*fc1": 2, "qkv": 5}, alpha_pattern={"fc2": 7}),
  "dora": dict(target_modules=["qkv", "attn.proj", "fc1", "patch_embed.proj"], use_dora=True),
}


def loaded(name, state):
  """timm's model of this name with the state dict, a fresh head where it holds none."""
  import torch

  model = timm_model(name)
  state = {key: torch.from_numpy(np.array(array)) for key, array in state.items()}
  missing, unexpected = model.load_state_dict(state, strict=False)
  assert not unexpected and all(key.startswith("head.") for key in missing), (missing, unexpected)
  return model


def run(*arguments):
  with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
    if program.main(list(map(str, arguments))):
      raise SystemExit(said.getvalue())


class Backbone:
  """A backbone at random: model, parameters, base, its file, its timm state dict, images."""

  def __init__(self, name, folder):
    self.name, self.size = name, size_of(name)
    self.model = models.create(name, num_classes=CLASSES, image_size=self.size)
    params, _ = weights.load("random", self.model, key=jax.random.key(0))
    self.file = folder / f"{name}.npz"
    weights.save(self.file, moved(params, 0))
    self.params, self.base = weights.load(self.file, self.model, key=jax.random.key(0))
    arrays = {p: np.asarray(x) for p, x in flat(self.params).items() if not p.startswith("head/")}
    self.state = names.to_timm(arrays, names.has_conv_mlp(name))
    self.images = np.random.default_rng(2).normal(size=(4, self.size, self.size, 3))
    self.images = self.images.astype(np.float32)

  def plain(self, variables):
    return np.asarray(jax.jit(self.model.apply)({"params": variables["params"]}, self.images))


def there(backbone, method, folder):
  """(our logits, HF PEFT's, those without the adapter but with its head) of one made here."""
  from peft import PeftModel

  tuned = Tuned(backbone.model, (method,), sites(backbone.model, models.images(backbone.model)))
  start = {"params": backbone.params, **tuned.init(jax.random.key(1), backbone.params)}
  train, frozen = tuned.split(start)
  train = moved(train, 1)
  file = folder / "adapter.safetensors"
  adapter_file.save(file, train, tuned=tuned, base=backbone.base, model=backbone.name,
                    resize="bicubic_pil", normalize=models.preset(backbone.name).normalize)
  variables = join(train, frozen)
  logits = np.asarray(jax.jit(tuned.apply)(variables, backbone.images))
  run("peft", "export", file, folder / "peft")
  opened = PeftModel.from_pretrained(loaded(backbone.name, backbone.state), folder / "peft")
  return logits, in_torch(opened.eval(), backbone.images), backbone.plain(variables)


def back(backbone, options, folder):
  """(HF PEFT's logits, ours, those without the adapter but with its head) of one made there."""
  import torch
  from peft import LoraConfig, get_peft_model

  head = "head" if backbone.name.startswith("vit") else "head.fc"
  config = LoraConfig(r=4, lora_alpha=6, modules_to_save=[head], **options)
  model = get_peft_model(loaded(backbone.name, backbone.state), config).eval()
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.requires_grad:
        spread = parameter.std() if parameter.ndim > 1 and parameter.std() > 0 else 1.0
        parameter.add_(0.2 * spread * torch.randn_like(parameter))
  model.save_pretrained(folder / "theirs")
  run("peft", "import", folder / "theirs", "--model", backbone.name, "--base", backbone.file,
      "--image_size", backbone.size, "--out", folder / "imported.safetensors")
  ours = peft_jax.load(folder / "imported.safetensors")
  logits, plain = ours.logits(backbone.images), backbone.plain(ours.variables)
  return in_torch(model, backbone.images), logits, plain


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--models", default="vit_tiny_patch16_224")
  parser.add_argument("--only", default="", help="a part of the cases' names")
  args = parser.parse_args()
  worst, count = 0.0, 0
  for name in args.models.split(","):
    with tempfile.TemporaryDirectory() as folder:
      backbone = Backbone(name, pathlib.Path(folder))
      for way, cases in ((there, THERE), (back, BACK)):
        for case, what in cases.items():
          attends = ATTENTION in str(what) or "attn/[qv]" in str(what) or "patterns" in case
          if args.only not in case or (name.startswith("convnext") and attends):
            continue
          with tempfile.TemporaryDirectory() as inner:
            one, other, plain = way(backbone, what, pathlib.Path(inner))
          assert abs(one - plain).max() > 0.1 * abs(one).max(), "the adapter changed nothing"
          difference = float(abs(one - other).max())
          worst, count = max(worst, difference), count + 1
          print(f"{name} {way.__name__}, {case}: logits differ by at most {difference:.2g} "
                f"(largest {abs(one).max():.3g})", flush=True)
  if not count:
    raise SystemExit(f"no case is named like {args.only!r}")
  if worst > ALLOWED:
    raise SystemExit(f"a difference of {worst:.2g} is more than {ALLOWED:g}")


if __name__ == "__main__":
  main()
