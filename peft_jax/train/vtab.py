"""VTAB-1k: what its recipes share, and the per-task values of the published scripts.

Images are squashed to 224 x 224 with Pillow's bicubic filter, without augmentation; training is on
train800val200, the result is the top-1 accuracy on the whole test split after the last epoch. The
scripts of SSF, GPS, SAN and SPT report their best epoch on the test split instead: the best of
the epochs evaluated (eval.every_epochs) is here too, as best_epoch_test_accuracy.
"""

from __future__ import annotations

from typing import NamedTuple

from peft_jax import data
from peft_jax.train import config as config_lib


class SSFValues(NamedTuple):
  """lr: peak, absolute, for batch 64; weight_decay: on the head's kernel; drop_path: last block."""

  lr: float
  weight_decay: float
  drop_path: float


# SSF: train_scripts/vit/vtab/<task>/train_ssf.sh.
SSF = {
  "cifar100": SSFValues(5e-3, 5e-5, 0.0),
  "caltech101": SSFValues(1e-3, 5e-2, 0.1),
  "dtd": SSFValues(5e-3, 5e-5, 0.0),
  "oxford_flowers102": SSFValues(5e-3, 5e-5, 0.0),
  "oxford_iiit_pet": SSFValues(5e-3, 5e-5, 0.0),
  "svhn": SSFValues(1e-2, 5e-5, 0.0),
  "sun397": SSFValues(5e-3, 5e-5, 0.0),
  "patch_camelyon": SSFValues(5e-3, 5e-5, 0.0),
  "eurosat": SSFValues(3e-3, 5e-2, 0.2),
  "resisc45": SSFValues(2e-3, 5e-5, 0.1),
  "diabetic_retinopathy": SSFValues(5e-3, 5e-5, 0.2),
  "clevr_count": SSFValues(2e-3, 5e-2, 0.1),
  "clevr_dist": SSFValues(5e-2, 5e-2, 0.1),
  "dmlab": SSFValues(5e-3, 5e-5, 0.1),
  "kitti_dist": SSFValues(1e-2, 5e-5, 0.0),
  "dsprites_loc": SSFValues(1e-2, 5e-5, 0.0),
  "dsprites_ori": SSFValues(5e-3, 5e-5, 0.2),
  "smallnorb_azi": SSFValues(2e-2, 5e-5, 0.1),
  "smallnorb_ele": SSFValues(5e-3, 5e-2, 0.2),
}


class Prompts(NamedTuple):
  """VPT's number of prompts: in every block, or before the first."""

  deep: int
  shallow: int


# VPT on ViT-B/16 in21k. Its hyper-parameters are not in its repository: these lengths, of its grid
# {1, 5, 10, 50, 100, 200}, are those that give the percentages its paper prints. That leaves one
# for every deep task; the shallow ones marked ? may be 1, 5 or 10.
PROMPTS = {
  "cifar100": Prompts(10, 100),
  "caltech101": Prompts(10, 5),  # ?
  "dtd": Prompts(10, 1),
  "oxford_flowers102": Prompts(1, 200),
  "oxford_iiit_pet": Prompts(1, 50),
  "svhn": Prompts(50, 200),
  "sun397": Prompts(5, 1),  # ?
  "patch_camelyon": Prompts(100, 5),  # ?
  "eurosat": Prompts(100, 50),
  "resisc45": Prompts(10, 50),
  "diabetic_retinopathy": Prompts(1, 10),  # ?
  "clevr_count": Prompts(50, 100),
  "clevr_dist": Prompts(200, 200),
  "dmlab": Prompts(100, 100),
  "kitti_dist": Prompts(50, 100),
  "dsprites_loc": Prompts(10, 100),
  "dsprites_ori": Prompts(50, 100),
  "smallnorb_azi": Prompts(200, 200),
  "smallnorb_ele": Prompts(200, 200),
}


def of_task(table, task):
  """A table's values for a task of VTAB-1k, by any of its names; cifar100's for every other."""
  name = task if task in data.OUTSIDE else data.tasks.find(task).name
  return table.get(name, table["cifar100"])


def start(argument, methods):
  """The config every VTAB recipe starts from, unlocked, with `methods`.

  argument: "task=cifar100,backbone=vit_b16"; these are the defaults. Data: data/vtab-1k; weights:
  the AugReg file of ViT-B/16 in weights/, the one SSF, GPS and SAN load.
  """
  given = config_lib.parse_argument(argument, {"task": "cifar100", "backbone": "vit_b16"})
  config = config_lib.default().unlock()
  config.methods = methods
  config.task = given["task"]
  config.model.name = given["backbone"]
  if given["backbone"] in ("vit_b16", "vit_base_patch16_224"):
    config.weights = "weights/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz"
  if not given["task"].startswith("mini_"):
    config.data.root = "data/vtab-1k"
  config.batch_size = 64  # in all; the last, partial batch is dropped: 15 steps an epoch
  config.optim.epochs = 100
  config.optim.warmup_epochs = 10
  config.optim.warmup_lr = 1e-7
  config.optim.min_lr = 1e-8
  return config


def noah(argument, methods):
  """`start` with what the scripts of NOAH and SPT share: AdamW at 1e-3, drop path 0.1.

  They load the original in21k checkpoint and normalise with ImageNet's statistics; here: AugReg and
  its own normalisation. NOAH drops the last, partial batch, as here; SPT keeps it.
  """
  config = start(argument, methods)
  config.optim.lr = 1e-3  # peak, absolute, for batch 64
  config.optim.warmup_lr = 1e-6
  config.optim.min_lr = 1e-5
  config.optim.lag = 1  # their loop steps the schedule after the epoch: 0 and 1 run at warmup_lr
  config.optim.weight_decay = 1e-4  # decoupled; on matrices only
  config.model.drop_path = 0.1  # last block's rate
  return config
