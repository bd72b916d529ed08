"""VTAB-1k: what its recipes share, and the per-task values of the published scripts.

Images are squashed to 224 x 224 with Pillow's bicubic filter, without augmentation; training is on
train800val200, the result is the top-1 accuracy on the whole test split after the last epoch. The
scripts of SSF, GPS, SAN and SPT report their best epoch on the test split instead: the best of
the epochs evaluated (eval.every_epochs) is here too, as best_epoch_test_accuracy.
"""

from __future__ import annotations

from typing import NamedTuple

from peft_jax.train import recipe


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
  """VPT's number of prompts: in every block, or before the first, of ViT-B/16; deep of Swin-B."""

  deep: int
  shallow: int
  swin_deep: int


# VPT, in21k. Its hyper-parameters are not in its repository: these lengths, of its grid
# {1, 5, 10, 50, 100, 200} (Swin-B: {1, 5, 10, 50}), are those that give the percentages its paper
# prints. That leaves one for every deep task; the shallow ones marked ? may be 1, 5 or 10. Swin-B's
# 0.13 % for EuroSAT fits none: 10 gives 0.15 %.
PROMPTS = {
  "cifar100": Prompts(10, 100, 1),
  "caltech101": Prompts(10, 5, 1),  # ?
  "dtd": Prompts(10, 1, 1),
  "oxford_flowers102": Prompts(1, 200, 1),
  "oxford_iiit_pet": Prompts(1, 50, 1),
  "svhn": Prompts(50, 200, 50),
  "sun397": Prompts(5, 1, 1),  # ?
  "patch_camelyon": Prompts(100, 5, 5),  # ?
  "eurosat": Prompts(100, 50, 10),
  "resisc45": Prompts(10, 50, 10),
  "diabetic_retinopathy": Prompts(1, 10, 1),  # ?
  "clevr_count": Prompts(50, 100, 50),
  "clevr_dist": Prompts(200, 200, 50),
  "dmlab": Prompts(100, 100, 10),
  "kitti_dist": Prompts(50, 100, 50),
  "dsprites_loc": Prompts(10, 100, 10),
  "dsprites_ori": Prompts(50, 100, 5),
  "smallnorb_azi": Prompts(200, 200, 10),
  "smallnorb_ele": Prompts(200, 200, 1),
}


class GPSValues(NamedTuple):
  """lr: peak, absolute, for `batch_size`; drop_path: last block; k: weights of each neuron."""

  lr: float
  batch_size: int
  drop_path: float
  k: int


# GPS: train_scripts/vit/vtab/<task>/train_gps.sh, as released and as they were for the first eight
# days; the older values are those that give the paper's mean of 0.25 % of the parameters. All: Adam
# without weight decay, 100 epochs and 10 at the floor of 1e-8, 10 of warm-up from 1e-7. The paper's
# 81.1 for CIFAR-100 comes from other code, its authors say (issues 4 and 10); the script for
# Flowers102 does not parse.
GPS = {
  "cifar100": GPSValues(1e-2, 32, 0.0, 1),
  "caltech101": GPSValues(2e-3, 16, 0.0, 1),
  "dtd": GPSValues(2e-3, 16, 0.0, 1),
  "oxford_flowers102": GPSValues(2e-3, 16, 0.0, 1),
  "oxford_iiit_pet": GPSValues(3e-3, 32, 0.0, 1),
  "svhn": GPSValues(5e-3, 32, 0.0, 1),
  "sun397": GPSValues(2.5e-3, 16, 0.0, 1),
  "patch_camelyon": GPSValues(4e-3, 32, 0.0, 2),
  "eurosat": GPSValues(2e-3, 16, 0.0, 1),
  "resisc45": GPSValues(1.5e-3, 16, 0.1, 1),
  "diabetic_retinopathy": GPSValues(2e-3, 32, 0.2, 1),
  "clevr_count": GPSValues(3e-4, 16, 0.1, 1),
  "clevr_dist": GPSValues(2e-3, 16, 0.1, 1),
  "dmlab": GPSValues(1.5e-3, 16, 0.1, 1),
  "kitti_dist": GPSValues(1e-3, 16, 0.0, 1),
  "dsprites_loc": GPSValues(7e-3, 32, 0.0, 1),
  "dsprites_ori": GPSValues(5e-4, 16, 0.2, 1),
  "smallnorb_azi": GPSValues(3e-3, 32, 0.1, 1),
  "smallnorb_ele": GPSValues(3e-4, 32, 0.2, 1),
}

GPS_FIRST = {
  "cifar100": GPSValues(1e-2, 32, 0.0, 1),
  "caltech101": GPSValues(2e-3, 16, 0.0, 1),
  "dtd": GPSValues(1.5e-3, 16, 0.0, 1),
  "oxford_flowers102": GPSValues(8e-3, 32, 0.0, 1),
  "oxford_iiit_pet": GPSValues(8e-3, 32, 0.0, 1),
  "svhn": GPSValues(5e-3, 32, 0.0, 1),
  "sun397": GPSValues(1.5e-3, 16, 0.0, 1),
  "patch_camelyon": GPSValues(1.5e-3, 16, 0.0, 2),
  "eurosat": GPSValues(1e-3, 32, 0.0, 1),
  "resisc45": GPSValues(1e-3, 32, 0.0, 1),
  "diabetic_retinopathy": GPSValues(1.5e-3, 16, 0.2, 2),
  "clevr_count": GPSValues(1e-3, 32, 0.0, 1),
  "clevr_dist": GPSValues(8e-3, 32, 0.0, 1),
  "dmlab": GPSValues(3e-3, 16, 0.1, 1),
  "kitti_dist": GPSValues(2e-3, 16, 0.0, 1),
  "dsprites_loc": GPSValues(7e-3, 32, 0.0, 1),
  "dsprites_ori": GPSValues(5e-3, 32, 0.2, 1),
  "smallnorb_azi": GPSValues(8e-3, 32, 0.0, 1),
  "smallnorb_ele": GPSValues(8e-3, 32, 0.0, 1),
}

GPS_RELEASES = {"now": GPS, "first": GPS_FIRST}

# SPT: configs/vtab_*_spt_*.sh. Nothing differs between tasks (see `noah`) but the budget, of these
# the best for each; which one is not published.
SPT_BUDGETS = (200_000, 400_000, 600_000, 800_000, 1_000_000)


def start(argument, methods, also=()):
  """The config every VTAB recipe starts from, unlocked, with `methods`; also: see recipe.start.

  argument: "task=cifar100,backbone=vit_b16"; these are the defaults. Data: data/vtab-1k; weights:
  in21k files in weights/, see recipe.WEIGHTS. The values are those of ViT-B/16; swin_b and
  convnext_b take the same, but for deep prompts on swin_b.
  """
  config = recipe.start(argument, methods, root="data/vtab-1k", default="cifar100",
                        also=also)
  config.batch_size = 64  # in all; the last, partial batch is dropped: 15 steps an epoch
  config.optim.epochs = 100
  config.optim.warmup_epochs = 10
  config.optim.warmup_lr = 1e-7
  config.optim.min_lr = 1e-8
  return config


def noah(argument, methods, also=()):
  """`start` with what the scripts of NOAH and SPT share: AdamW at 1e-3, drop path 0.1.

  They load the original in21k checkpoint and normalise with ImageNet's statistics; here: AugReg and
  its own normalisation. NOAH drops the last, partial batch, as here; SPT keeps it.
  """
  config = start(argument, methods, also)
  recipe.noah_adamw(config)
  return config
