"""The backbones by name, and `create`, which builds one."""

import dataclasses
import difflib

import flax.linen as nn

from peft_jax.models import convnext, swin, vit
from peft_jax.models.convnext import ConvNeXt
from peft_jax.models.swin import Swin
from peft_jax.models.vit import ViT

CHECKS = {ViT: vit.check, Swin: swin.check, ConvNeXt: convnext.check}


@dataclasses.dataclass(frozen=True)
class Preset:
  """A published architecture and what its checkpoints expect.

  model: the architecture without a head, at the image size of its checkpoints.
  normalize: "inception" (images in [-1, 1]), "imagenet" or "clip" (mean and standard deviation).
  weights: the spec `weights.load` takes by default for this name; None: the user brings a file.
  """

  model: nn.Module
  normalize: str
  weights: str | None = None

  @property
  def image_size(self):
    return self.model.image_size


def plain(width, depth, heads, patch, image_size=224, normalize="inception", weights=None, **more):
  model = ViT(0, width, depth, heads, patch, image_size, **more)
  return Preset(model, normalize, weights)


def deit(width, heads):
  return plain(width, 12, heads, 16, normalize="imagenet", distilled=True)


def clip(patch, gelu="exact"):
  return plain(768, 12, 12, patch, normalize="clip", norm_pre=True, patch_bias=False, eps=1e-5,
               gelu=gelu)


def dinov2(width, depth, heads, weights=None, **more):
  return plain(width, depth, heads, 14, 518, "imagenet", weights, layer_scale=1e-5, **more)


def windows(width, depth, heads, window=7, image_size=224):
  """depth: of stage 2; heads: of stage 0, doubled in each further one."""
  heads = tuple(heads * 2**s for s in range(4))
  return Preset(Swin(0, width, (2, 2, depth, 2), heads, window, image_size=image_size), "imagenet")


def convolutions(width, depths, **more):
  """width: of stage 0, doubled in each further one."""
  return Preset(ConvNeXt(0, tuple(width * 2**s for s in range(4)), depths, **more), "imagenet")


REG4 = {"registers": 4, "no_embed_class": True}

CONVNEXT = {
  "atto": (40, (2, 2, 6, 2)),
  "femto": (48, (2, 2, 6, 2)),
  "pico": (64, (2, 2, 6, 2)),
  "nano": (80, (2, 2, 8, 2)),
  "tiny": (96, (3, 3, 9, 3)),
  "small": (96, (3, 3, 27, 3)),
  "base": (128, (3, 3, 27, 3)),
  "large": (192, (3, 3, 27, 3)),
  "xlarge": (256, (3, 3, 27, 3)),
  "huge": (352, (3, 3, 27, 3)),
}

# timm's names, then short ones for the same value.
PRESETS = {
  "vit_tiny_patch16_224": plain(192, 12, 3, 16),
  "vit_small_patch16_224": plain(384, 12, 6, 16),
  "vit_base_patch16_224": plain(768, 12, 12, 16),
  "vit_large_patch16_224": plain(1024, 24, 16, 16),
  "vit_huge_patch14_224": plain(1280, 32, 16, 14),
  "deit_tiny_distilled_patch16_224": deit(192, 3),
  "deit_small_distilled_patch16_224": deit(384, 6),
  "deit_base_distilled_patch16_224": deit(768, 12),
  "vit_base_patch16_clip_224": clip(16),
  "vit_base_patch32_clip_224": clip(32),
  "vit_base_patch16_clip_quickgelu_224": clip(16, "quick"),  # OpenAI's own weights
  "vit_base_patch32_clip_quickgelu_224": clip(32, "quick"),
  "dinov2_vits14": dinov2(384, 12, 6, weights="dinov2_vits14"),
  "dinov2_vitb14": dinov2(768, 12, 12),
  "dinov2_vitl14": dinov2(1024, 24, 16),
  "dinov2_vits14_reg4": dinov2(384, 12, 6, **REG4),
  "dinov2_vitb14_reg4": dinov2(768, 12, 12, **REG4),
  "dinov2_vitl14_reg4": dinov2(1024, 24, 16, **REG4),
  "swin_tiny_patch4_window7_224": windows(96, 6, 3),
  "swin_small_patch4_window7_224": windows(96, 18, 3),
  "swin_base_patch4_window7_224": windows(128, 18, 4),
  "swin_base_patch4_window12_384": windows(128, 18, 4, 12, 384),
  "swin_large_patch4_window7_224": windows(192, 18, 6),
  "swin_large_patch4_window12_384": windows(192, 18, 6, 12, 384),
}
PRESETS |= {f"convnext_{s}": convolutions(*CONVNEXT[s]) for s in CONVNEXT if s != "huge"}
PRESETS |= {f"convnextv2_{s}": convolutions(*CONVNEXT[s], layer_scale=None, grn=True)
            for s in CONVNEXT if s not in ("small", "xlarge")}
PRESETS |= {
  "vit_ti16": PRESETS["vit_tiny_patch16_224"],
  "vit_s16": PRESETS["vit_small_patch16_224"],
  "vit_b16": PRESETS["vit_base_patch16_224"],
  "vit_l16": PRESETS["vit_large_patch16_224"],
  "vit_h14": PRESETS["vit_huge_patch14_224"],
  "clip_b16": PRESETS["vit_base_patch16_clip_quickgelu_224"],
  "clip_b32": PRESETS["vit_base_patch32_clip_quickgelu_224"],
  "swin_t": PRESETS["swin_tiny_patch4_window7_224"],
  "swin_s": PRESETS["swin_small_patch4_window7_224"],
  "swin_b": PRESETS["swin_base_patch4_window7_224"],
  "swin_l": PRESETS["swin_large_patch4_window7_224"],
  "convnext_t": PRESETS["convnext_tiny"],
  "convnext_s": PRESETS["convnext_small"],
  "convnext_b": PRESETS["convnext_base"],
  "convnext_l": PRESETS["convnext_large"],
  "convnext_xl": PRESETS["convnext_xlarge"],
  # Small enough to be pretrained in an hour on a CPU (configs/pretrain_tiny.py); weights.tiny has
  # the result.
  "tiny_vit": plain(128, 6, 4, 8, 64, "imagenet", "tiny_vit", pool="avg"),
  "tiny_swin": Preset(
    Swin(0, 48, (2, 2, 2), (2, 4, 8), 4, image_size=64), "imagenet", "tiny_swin"),
  "tiny_convnext": Preset(
    ConvNeXt(0, (32, 64, 128, 256), (2, 2, 4, 2), image_size=64, layer_scale=1.0), "imagenet",
    "tiny_convnext"),
  # For tests.
  "vit_test": plain(24, 2, 3, 8, 32),
  "swin_test": Preset(Swin(0, 12, (2, 2), (2, 4), image_size=56), "imagenet"),
  "convnext_test": Preset(ConvNeXt(0, (8, 12, 16, 24), (1, 1, 2, 1), image_size=64), "imagenet"),
}


def preset(name):
  """PRESETS[name], or a ValueError that says which names are near."""
  if name in PRESETS:
    return PRESETS[name]
  near = difflib.get_close_matches(str(name), PRESETS, n=3, cutoff=0.4) or list(PRESETS)
  raise ValueError(f"there is no model {name!r}; near it: {', '.join(near)}.")


def create(name, *, num_classes, image_size=None, drop_path=0.0, loop="python", dtype="float32",
           attention="xla", **overrides):
  """The Linen model called `name`, hashable, without variables.

  num_classes: width of the head; 0 for features.
  image_size: pixels; None takes the preset's.
  drop_path: rate of the last block, acts with train=True.
  loop: "python" | "remat", and for a ViT "scan" | "scan_remat".
  dtype: of the computation, "float32" | "bfloat16"; parameters stay float32.
  attention: "xla" | "cudnn", the second for a ViT only.
  overrides: any other field of the model, e.g. pool="avg", gelu="tanh"; None for a field that
    this model does not have is ignored.
  Raises ValueError for an unknown name or option and for an image size that does not fit.
  """
  model = preset(name).model
  family = type(model).__name__
  fields = [f.name for f in dataclasses.fields(model) if f.name not in ("parent", "name")]
  overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()
               if k in fields or v is not None}
  unknown = sorted(set(overrides) - set(fields))
  if unknown:
    raise ValueError(f"{name} has no option {', '.join(unknown)}; there are {', '.join(fields)}.")
  if image_size is not None:
    overrides["image_size"] = image_size
  if "attention" in fields:
    overrides["attention"] = attention
  elif attention != "xla":
    raise ValueError(f"attention={attention!r} does not run in a {family}: take attention='xla'.")
  model = model.clone(num_classes=num_classes, drop_path=drop_path, loop=loop, dtype=dtype,
                      **overrides)
  CHECKS[type(model)](model)
  return model
