"""Makes names.json: {program/model: {name: shape}} of small models, by the programs themselves.

    python make_names.py          with torch, timm, transformers and safetensors installed

The names are those of files: what save_pretrained writes, for Hugging Face.
"""

import json
import pathlib
import tempfile

import timm
import torch
import transformers
from safetensors import safe_open

HERE = pathlib.Path(__file__).parent
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3,
         "num_classes": 5}
SWIN = {"img_size": 224, "embed_dim": 12, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8),
        "window_size": 7, "num_classes": 5}
CONVNEXT = {"dims": (8, 12, 16, 24), "depths": (1, 2, 1, 1), "num_classes": 5}
TIMM = {
  "vit": ("vit_base_patch16_224", SMALL),
  "vit_avg": ("vit_base_patch16_224", SMALL | {"global_pool": "avg"}),
  "deit_distilled": ("deit_base_distilled_patch16_224", SMALL),
  "deit3": ("deit3_base_patch16_224", SMALL),
  "dinov2": ("vit_base_patch14_dinov2", SMALL),
  "dinov2_reg": ("vit_base_patch14_reg4_dinov2", SMALL),
  "clip": ("vit_base_patch32_clip_224", SMALL),
  "swin": ("swin_tiny_patch4_window7_224", SWIN),
  "convnext": ("convnext_tiny", CONVNEXT),
  "convnext_conv_mlp": ("convnext_atto", CONVNEXT),
  "convnextv2": ("convnextv2_tiny", CONVNEXT),
  "convnextv2_conv_mlp": ("convnextv2_atto", CONVNEXT),
}
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
       "intermediate_size": 96, "image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1]}
HF = {
  "vit": ("ViTForImageClassification", "ViTConfig", VIT),
  "vit_bare": ("ViTModel", "ViTConfig", VIT),
  "vit_mae": ("ViTMAEForPreTraining", "ViTMAEConfig", VIT | {
    "decoder_hidden_size": 8, "decoder_num_attention_heads": 1, "decoder_num_hidden_layers": 1}),
  "deit": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", VIT),
  "dinov2": ("Dinov2Model", "Dinov2Config", VIT),
  "dinov2_head": ("Dinov2ForImageClassification", "Dinov2Config", VIT),
  "dinov2_reg": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", VIT),
  "swin": ("SwinForImageClassification", "SwinConfig", {
    "embed_dim": 12, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8], "image_size": 56}),
  "swin_bare": ("SwinModel", "SwinConfig", {
    "embed_dim": 12, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8], "image_size": 56}),
  "convnext": ("ConvNextForImageClassification", "ConvNextConfig", STAGES),
  "convnext_bare": ("ConvNextModel", "ConvNextConfig", STAGES),
  "convnextv2": ("ConvNextV2ForImageClassification", "ConvNextV2Config", STAGES),
}


def saved(model, config, options):
  net = getattr(transformers, model)(getattr(transformers, config)(**options))
  with tempfile.TemporaryDirectory() as folder:
    net.save_pretrained(folder)
    with safe_open(f"{folder}/model.safetensors", "np") as file:
      return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}


if __name__ == "__main__":
  found = {}
  for name, (model, options) in TIMM.items():
    with torch.device("meta"):
      net = timm.create_model(model, **options)
    found[f"timm/{name}"] = {k: list(v.shape) for k, v in net.state_dict().items()}
  for name, (model, config, options) in HF.items():
    found[f"hf/{name}"] = saved(model, config, options)
  lines = [f"{json.dumps(name)}: {json.dumps(shapes)}" for name, shapes in found.items()]
  (HERE / "names.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
