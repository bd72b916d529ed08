"""The layouts of published files, told apart by their names, each as rules that lead to timm's.

A rule is (pattern of a name in the file, timm's name); what no rule fits keeps its name. `skipped`
says which tensors of the file the model has no use for, and why; it is applied before the rules.
Patterns fit whole names.
"""

import dataclasses

from peft_jax.weights.names.rules import renamed

BUFFERS = {r".*\.(relative_position_index|relative_coords_table|attn_mask|num_batches_tracked"
           r"|position_ids)": "a buffer"}
PRETRAINING = {
  r"mask_token": "only used in pre-training",
  r"decoder_.*|decoder\..*": "a decoder",
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """family: key of families.FAMILIES, or None for what is not torch's.
  marks: patterns of which each must fit one of the file's names."""

  family: str | None
  marks: tuple
  rules: tuple = ()
  skipped: dict = dataclasses.field(default_factory=dict)


# DeiT-3's layer scale, DINOv2's registers, and the heads and norms of later timm.
VIT = (
  (r"register_tokens", r"reg_token"),
  (r"blocks\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma"),
)

SWIN_HEAD = ((r"head\.(weight|bias)", r"head.fc.\1"),)
# Merging closes a stage in the original and opens the next one in timm.
SWIN_MERGING = tuple((rf"layers\.{i}\.downsample\.(.*)", rf"layers.{i + 1}.downsample.\1")
                     for i in range(3))

# SSF's and GPS's copies of timm name stem and downsampling by what they are.
CONVNEXT = (
  (r"stem\.(?:proj|conv)\.(.*)", r"stem.0.\1"),
  (r"stem\.norm\.(.*)", r"stem.1.\1"),
  (r"stages\.(\d+)\.downsample\.norm\.(.*)", r"stages.\1.downsample.0.\2"),
  (r"stages\.(\d+)\.downsample\.(?:proj|conv)\.(.*)", r"stages.\1.downsample.1.\2"),
  (r"head\.(weight|bias)", r"head.fc.\1"),
)

CONVNEXT_ORIGINAL = (
  (r"downsample_layers\.0\.([01])\.(.*)", r"stem.\1.\2"),
  (r"downsample_layers\.([1-3])\.([01])\.(.*)", r"stages.\1.downsample.\2.\3"),
  (r"stages\.(\d+)\.(\d+)\.dwconv\.(.*)", r"stages.\1.blocks.\2.conv_dw.\3"),
  (r"stages\.(\d+)\.(\d+)\.pwconv([12])\.(.*)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
  (r"stages\.(\d+)\.(\d+)\.grn\.gamma", r"stages.\1.blocks.\2.mlp.grn.weight"),
  (r"stages\.(\d+)\.(\d+)\.grn\.beta", r"stages.\1.blocks.\2.mlp.grn.bias"),
  (r"stages\.(\d+)\.(\d+)\.(norm\..*|gamma)", r"stages.\1.blocks.\2.\3"),
  (r"norm\.(.*)", r"head.norm.\1"),
  (r"head\.(.*)", r"head.fc.\1"),
)

# Hugging Face. The name of the model before its names is absent where the model was saved bare.
HF_QKV = tuple((rf"(?:\w+\.)?encoder\.layer\.(\d+)\.attention\.attention\.{q}\w+\.(\w+)",
                rf"blocks.\1.attn.{q}.\2") for q in "qkv")
HF_VIT = (
  *HF_QKV,
  (r"(?:\w+\.)?embeddings\.cls_token", r"cls_token"),
  (r"(?:\w+\.)?embeddings\.distillation_token", r"dist_token"),
  (r"(?:\w+\.)?embeddings\.register_tokens", r"reg_token"),
  (r"(?:\w+\.)?embeddings\.position_embeddings", r"pos_embed"),
  (r"(?:\w+\.)?embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
  (r"(?:\w+\.)?encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
  (r"(?:\w+\.)?encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
  (r"(?:\w+\.)?encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
  (r"(?:\w+\.)?encoder\.layer\.(\d+)\.layernorm_before\.(\w+)", r"blocks.\1.norm1.\2"),
  (r"(?:\w+\.)?encoder\.layer\.(\d+)\.layernorm_after\.(\w+)", r"blocks.\1.norm2.\2"),
  (r"(?:\w+\.)?encoder\.layer\.(\d+)\.(norm[12]\.\w+|mlp\.fc[12]\.\w+)", r"blocks.\1.\2"),
  (r"(?:\w+\.)?encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
  (r"(?:\w+\.)?layernorm\.(\w+)", r"norm.\1"),
  (r"(?:cls_)?classifier\.(\w+)", r"head.\1"),
  (r"distillation_classifier\.(\w+)", r"head_dist.\1"),
)

HF_SWIN_BLOCK = r"(?:swin\.)?encoder\.layers\.(\d+)\.blocks\.(\d+)\."
HF_SWIN = (
  (r"(?:swin\.)?embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
  (r"(?:swin\.)?embeddings\.norm\.(\w+)", r"patch_embed.norm.\1"),
  *((HF_SWIN_BLOCK + rf"attention\.self\.{q}\w+\.(\w+)", rf"layers.\1.blocks.\2.attn.{q}.\3")
    for q in "qkv"),
  (HF_SWIN_BLOCK + r"attention\.self\.(relative_position_bias_table)",
   r"layers.\1.blocks.\2.attn.\3"),
  (HF_SWIN_BLOCK + r"attention\.output\.dense\.(\w+)", r"layers.\1.blocks.\2.attn.proj.\3"),
  (HF_SWIN_BLOCK + r"intermediate\.dense\.(\w+)", r"layers.\1.blocks.\2.mlp.fc1.\3"),
  (HF_SWIN_BLOCK + r"output\.dense\.(\w+)", r"layers.\1.blocks.\2.mlp.fc2.\3"),
  (HF_SWIN_BLOCK + r"layernorm_before\.(\w+)", r"layers.\1.blocks.\2.norm1.\3"),
  (HF_SWIN_BLOCK + r"layernorm_after\.(\w+)", r"layers.\1.blocks.\2.norm2.\3"),
  *((rf"(?:swin\.)?encoder\.{old}", new) for old, new in SWIN_MERGING),
  (r"(?:swin\.)?layernorm\.(\w+)", r"norm.\1"),
  (r"classifier\.(\w+)", r"head.fc.\1"),
)

HF_CONVNEXT_BLOCK = r"(?:convnext(?:v2)?\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\."
HF_CONVNEXT = (
  (r"(?:convnext(?:v2)?\.)?embeddings\.patch_embeddings\.(\w+)", r"stem.0.\1"),
  (r"(?:convnext(?:v2)?\.)?embeddings\.layernorm\.(\w+)", r"stem.1.\1"),
  (r"(?:convnext(?:v2)?\.)?encoder\.stages\.(\d+)\.downsampling_layer\.([01])\.(\w+)",
   r"stages.\1.downsample.\2.\3"),
  (HF_CONVNEXT_BLOCK + r"dwconv\.(\w+)", r"stages.\1.blocks.\2.conv_dw.\3"),
  (HF_CONVNEXT_BLOCK + r"layernorm\.(\w+)", r"stages.\1.blocks.\2.norm.\3"),
  (HF_CONVNEXT_BLOCK + r"pwconv([12])\.(\w+)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
  (HF_CONVNEXT_BLOCK + r"grn\.(\w+)", r"stages.\1.blocks.\2.mlp.grn.\3"),
  (HF_CONVNEXT_BLOCK + r"layer_scale_parameter", r"stages.\1.blocks.\2.gamma"),
  (r"(?:convnext(?:v2)?\.)?layernorm\.(\w+)", r"head.norm.\1"),
  (r"classifier\.(\w+)", r"head.fc.\1"),
)

# OpenAI's CLIP and OpenCLIP: the image tower.
CLIP = (
  (r"visual\.conv1\.(\w+)", r"patch_embed.proj.\1"),
  (r"visual\.class_embedding", r"cls_token"),
  (r"visual\.positional_embedding", r"pos_embed"),
  (r"visual\.ln_pre\.(\w+)", r"norm_pre.\1"),
  (r"visual\.ln_post\.(\w+)", r"norm.\1"),
  (r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
  (r"visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
  (r"visual\.transformer\.resblocks\.(\d+)\.ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
  (r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
  (r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
)
CLIP_SKIPPED = {
  r"visual\.proj": "a head of other classes",
  r"(?!visual\.).*": "CLIP's text tower",
}

# In this order: the first whose marks are all there.
LAYOUTS = {
  "ours": Layout(None, (r"patch_embed/kernel|(patch_embed/proj|stem/conv)/kernel",)),
  "google": Layout(None, (r"(opt/target/|params/(img/)?)?embedding/kernel",)),
  "clip": Layout("vit", (r"visual\.conv1\.weight", r"visual\.class_embedding"), CLIP, CLIP_SKIPPED),
  "timm_vit": Layout("vit", (r"patch_embed\.proj\.weight", r"blocks\.0\.attn\.(qkv|q)\.weight"),
                     VIT, PRETRAINING),
  "original_swin": Layout("swin", (r"layers\.0\.blocks\.0\.attn\.(qkv|q)\.weight",
                                   r"layers\.0\.downsample\.reduction\.weight"),
                          SWIN_MERGING + SWIN_HEAD, PRETRAINING),
  "timm_swin": Layout("swin", (r"layers\.0\.blocks\.0\.attn\.(qkv|q)\.weight",),
                      SWIN_HEAD, PRETRAINING),
  "original_convnext": Layout("convnext", (r"downsample_layers\.0\.0\.weight",),
                              CONVNEXT_ORIGINAL, PRETRAINING),
  "timm_convnext": Layout("convnext", (r"stages\.0\.blocks\.0\.conv_dw\.weight",), CONVNEXT),
  "hf_swin": Layout("swin", (HF_SWIN_BLOCK + r"attention\.self\.query\.weight",), HF_SWIN,
                    {r"(swin\.)?embeddings\.mask_token": "only used in pre-training"}),
  "hf_convnext": Layout("convnext", (HF_CONVNEXT_BLOCK + r"dwconv\.weight",), HF_CONVNEXT),
  "hf_vit": Layout("vit", (HF_QKV[0][0], r"(?:\w+\.)?embeddings\.cls_token"), HF_VIT, {
    r"(\w+\.)?embeddings\.mask_token": "only used in pre-training",
    r"(\w+\.)?pooler\..*": "the pooler",
    r"decoder\..*": "a decoder",
  }),
}

# What wraps a state dict's names, and what then stands beside it.
PREFIXES = {
  "": {},
  "module.base_encoder.": {
    r"module\.momentum_encoder\..*": "the momentum encoder of MoCo",
    r"module\.predictor\..*": "the predictor of MoCo",
    r"module\.base_encoder\.head\..*": "the projector of MoCo",
  },
  "module.": {},
  "_orig_mod.": {},
  "encoder.": {},  # SimMIM, MoBY
  "backbone.": {},
  "model.": {},
}

# Known files that no model here can hold.
REFUSED = {
  r"image_encoder\.patch_embed\.proj\.weight": "the segmentation model SAM",
  r"(module\.base_encoder\.|module\.)?patch_embed\.proj\.\d+\.weight":
    "a ViT with a convolutional stem (MoCo v3's vit_conv)",
  r".*layers\.0\.blocks\.0\.attn\.logit_scale": "a Swin V2",
  r".*blocks\.0\.mlp\.w12\.weight": "a ViT with gated MLPs (DINOv2's giant)",
  r"(opt/target/|params/)?conv_root/kernel": "a hybrid of ResNet and ViT",
}


def rename(name, layout):
  return renamed(name, layout.rules)
