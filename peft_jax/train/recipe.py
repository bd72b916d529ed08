"""What the recipes of vtab, fgvc and general share: where a config starts, and timm's augmentation.

A recipe is a function of a config file's argument that returns an unlocked config; what is of the
config's own (the method's options, a rate to choose) the file in configs/ sets behind it.
"""

from __future__ import annotations

from peft_jax import data
from peft_jax.train import config as config_lib

# The files that SSF, GPS and SAN load, in weights/: ImageNet-21k, 224 pixels. All come from their
# authors; AugReg's also from timm as vit_base_patch16_224.augreg_in21k, the others as
# swin_base_patch4_window7_224.ms_in22k and convnext_base.fb_in22k.
WEIGHTS = {
  "vit_b16": "weights/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz",
  "swin_b": "weights/swin_base_patch4_window7_224_22k.pth",
  "convnext_b": "weights/convnext_base_22k_224.pth",
}
SHORT = {  # timm's name: ours
  "vit_base_patch16_224": "vit_b16",
  "swin_base_patch4_window7_224": "swin_b",
  "convnext_base": "convnext_b",
}


def start(argument, methods, *, root, task=None, default=None, also=()):
  """The default config, unlocked, with `methods`, and what the argument and `root` say.

  argument: "task=NAME,backbone=vit_b16" as typed behind the config's file; only "backbone=NAME" for
    a recipe of one `task`. `default`: the task where none is typed.
  root: folder of the data; the embedded mini_ tasks have none.
  also: further keys that the config's file reads by `option`.
  Raises ValueError for an argument with another key.
  """
  known = {"backbone": "vit_b16"} if task else {"task": default, "backbone": "vit_b16"}
  given = config_lib.parse_argument(argument, known | dict.fromkeys(also))
  config = config_lib.default().unlock()
  config.methods = methods
  config.task = task or given["task"]
  config.model.name = given["backbone"]
  config.weights = WEIGHTS.get(backbone(config))
  if not config.task.startswith("mini_"):
    config.data.root = root
  return config


def option(argument, key, values):
  """What the argument says of `key`, one of `values`: the first of these where it says nothing."""
  value = typed(argument, key, next(iter(values)))
  if value not in values:
    raise ValueError(f"The config argument {key}={value} is none of {', '.join(values)}.")
  return value


def typed(argument, key, default):
  """What the argument says of `key`, in the type of `default`; this where it says nothing."""
  own = [part for part in (argument or "").split(",") if part.partition("=")[0].strip() == key]
  return config_lib.parse_argument(",".join(own), {key: default})[key]


def backbone(config):
  """The backbone's name in the tables of recipes: "vit_b16" for timm's name of it, too."""
  return SHORT.get(config.model.name, config.model.name)


def is_convnext(config):
  """Whether the backbone is a ConvNeXt, which has neither attention nor tokens."""
  return config.model.name.startswith("convnext")


def of_task(table, task):
  """A table's values for a task, by any of its names; those of its first row for other tasks."""
  name = task if task in table or task in data.OUTSIDE else data.tasks.find(task).name
  return table.get(name, next(iter(table.values())))


def timm_views(config):
  """SSF's images: random crops and flips, erasing, mixup or CutMix, smoothing; GPS has no erasing.

  A crop of 8 to 100 % of the area, ratio 3/4 to 4/3, by a random filter. To evaluate: short side
  248, for a ConvNeXt 256 (its crop_pct is 0.875), bicubic, and the centre. The release mixes within
  each GPU's 32 images and in whole grey levels.
  """
  config.data.view = "random_resized_crop"
  config.data.interpolation = "random"  # bilinear or bicubic, drawn for each image
  config.data.erasing = 0.25  # probability
  config.data.mixup = 0.8  # alpha of the Beta distribution
  config.data.cutmix = 1.0  # alpha; one of the two for each batch
  config.label_smoothing = 0.1
  config.data.resize = "short_side_875" if is_convnext(config) else "short_side"


def noah_adamw(config):
  """The optimizer of NOAH's and SPT's scripts, and their drop path."""
  config.optim.lr = 1e-3  # peak, absolute, for batch 64
  config.optim.warmup_lr = 1e-6
  config.optim.min_lr = 1e-5
  config.optim.lag = 1  # their loop steps the schedule after the epoch: 0 and 1 run at warmup_lr
  config.optim.weight_decay = 1e-4  # decoupled; on matrices only
  config.model.drop_path = 0.1  # last block's rate


def lora_on_qkv(config, rank, method="lora"):
  """LoRA, or DoRA, as the papers run it: one A for qkv, scale 1; on a ConvNeXt, every layer."""
  if not is_convnext(config):
    config[method].sites = ".*/attn/(q|k|v)"
    config[method].share = ("q", "k", "v")
  config[method].rank = rank
  config[method].alpha = float(rank)


def spt_modules(config, argument, placed):
  """What SPT places, as its scripts have it, and the argument's budget, 400,000 by default."""
  config.spt.budget = typed(argument, "budget", 400_000.0)
  config[placed].sites = r".*/(attn/(q|k|v|proj)|(mlp/)?fc[12])"
  config[placed].dropout = 0.1
  if placed == "lora":
    config.lora.rank, config.lora.alpha = 8, 8.0  # scale 1
  else:
    config.adapter.width = 8
    config.adapter.act = "gelu"  # exact; the paper says relu
    config.adapter.parallel = () if is_convnext(config) else ("proj",)  # the others behind
