"""The backbones by name, and `create`, which builds one."""

import dataclasses
import difflib

from peft_jax.models import vit


@dataclasses.dataclass(frozen=True)
class Preset:
  """A published architecture and what its checkpoints expect.

  image_size: pixels of the checkpoint's position table.
  normalize: "inception" (images in [-1, 1]) or "imagenet" (mean and standard deviation).
  weights: the spec `weights.load` takes by default for this name; None: the user brings a file.
  The other fields are options of the model class.
  """

  width: int
  depth: int
  heads: int
  patch: int
  image_size: int
  normalize: str
  weights: str | None = None
  registers: int = 0
  no_embed_class: bool = False
  layer_scale: float | None = None


def dinov2(width, depth, heads, weights=None, **more):
  return Preset(width, depth, heads, 14, 518, "imagenet", weights, layer_scale=1e-5, **more)


REG4 = {"registers": 4, "no_embed_class": True}

# timm's names, then short ones for the same value.
PRESETS = {
  "vit_tiny_patch16_224": Preset(192, 12, 3, 16, 224, "inception"),
  "vit_small_patch16_224": Preset(384, 12, 6, 16, 224, "inception"),
  "vit_base_patch16_224": Preset(768, 12, 12, 16, 224, "inception"),
  "vit_large_patch16_224": Preset(1024, 24, 16, 16, 224, "inception"),
  "vit_huge_patch14_224": Preset(1280, 32, 16, 14, 224, "inception"),
  "dinov2_vits14": dinov2(384, 12, 6, weights="dinov2_vits14"),
  "dinov2_vitb14": dinov2(768, 12, 12),
  "dinov2_vitl14": dinov2(1024, 24, 16),
  "dinov2_vits14_reg4": dinov2(384, 12, 6, **REG4),
  "dinov2_vitb14_reg4": dinov2(768, 12, 12, **REG4),
  "dinov2_vitl14_reg4": dinov2(1024, 24, 16, **REG4),
  "vit_test": Preset(24, 2, 3, 8, 32, "inception"),
}
PRESETS |= {
  "vit_ti16": PRESETS["vit_tiny_patch16_224"],
  "vit_s16": PRESETS["vit_small_patch16_224"],
  "vit_b16": PRESETS["vit_base_patch16_224"],
  "vit_l16": PRESETS["vit_large_patch16_224"],
  "vit_h14": PRESETS["vit_huge_patch14_224"],
}

# Fields of a preset that are not options of the model.
ABOUT_WEIGHTS = ("normalize", "weights")


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
  loop: "python" | "remat" | "scan" | "scan_remat".
  dtype: of the computation, "float32" | "bfloat16"; parameters stay float32.
  attention: "xla" | "cudnn".
  overrides: any other field of the model, e.g. pool="avg", gelu="tanh".
  Raises ValueError for an unknown name or option and for an image size the patch does not divide.
  """
  options = dataclasses.asdict(preset(name))
  for field in ABOUT_WEIGHTS:
    del options[field]
  fields = [f.name for f in dataclasses.fields(vit.ViT) if f.name not in ("parent", "name")]
  unknown = sorted(set(overrides) - set(fields))
  if unknown:
    raise ValueError(f"{name} has no option {', '.join(unknown)}; there are {', '.join(fields)}.")
  if image_size is not None:
    options["image_size"] = image_size
  options |= {"num_classes": num_classes, "drop_path": drop_path, "loop": loop, "dtype": dtype,
              "attention": attention, **overrides}
  model = vit.ViT(**options)
  vit.check(model)
  return model
