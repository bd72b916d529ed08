"""Makes the folders beside it with HF PEFT, on a timm ViT of width 8: what users bring.

    python make.py        with torch, timm and peft installed; the tests need none of them

lora/, dora/: what save_pretrained wrote. logits.npz: what these models answer to `images`. Every
number of base and adapter is a function of its name and place, so that no weights are stored.
"""

import json
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent
SIZES = dict(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=3)
CONFIGS = {
  "lora": dict(
    r=2, lora_alpha=3, target_modules=["qkv", "attn.proj", "fc1", "patch_embed.proj"],
    rank_pattern={"blocks.1.attn.qkv": 3}, alpha_pattern={"fc1": 5}, use_rslora=True,
  ),
  "dora": dict(r=2, lora_alpha=3, target_modules=["qkv", "fc2"], use_dora=True, lora_dropout=0.1),
}


def wave(name, shape):
  """float32 values in (-0.5, 0.5), around 1 for the norms' weights and DoRA's magnitudes."""
  start = zlib.crc32(name.encode()) % 1000
  around = 1 if "norm" in name and name.endswith("weight") or "magnitude" in name else 0
  values = around + 0.5 * np.sin(start + 0.7 * np.arange(np.prod(shape, dtype=int)))
  return values.reshape(shape).astype(np.float32)


def images():
  return wave("images", (2, 3, 16, 16))


def main():
  import timm.models.vision_transformer as timm_vit
  import torch
  from peft import LoraConfig, get_peft_model

  def fill(model, wanted):
    with torch.no_grad():
      for name, parameter in model.named_parameters():
        if wanted(name):
          parameter.copy_(torch.from_numpy(wave(name, tuple(parameter.shape))))

  logits, shapes = {}, {}
  for name, options in CONFIGS.items():
    model = timm_vit.VisionTransformer(**SIZES).eval()
    shapes = {n: list(p.shape) for n, p in model.named_parameters()}
    fill(model, lambda name: True)
    tuned = get_peft_model(model, LoraConfig(modules_to_save=["head"], **options)).eval()
    fill(tuned, lambda name: "lora" in name or "modules_to_save" in name)
    tuned.save_pretrained(HERE / name)
    (HERE / name / "README.md").unlink()
    config = HERE / name / "adapter_config.json"
    written = json.loads(config.read_text())
    written["target_modules"] = sorted(written["target_modules"])  # was a set
    config.write_text(json.dumps(written, indent=2, sort_keys=True))
    with torch.no_grad():
      logits[name] = tuned(torch.from_numpy(images())).numpy()
  np.savez(HERE / "logits.npz", **logits)
  (HERE / "shapes.json").write_text(json.dumps(shapes, sort_keys=True) + "\n")


if __name__ == "__main__":
  main()
