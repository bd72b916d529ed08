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


def ssf_values(task):
  """SSF's values for a task of VTAB-1k, by any of its names; those of cifar100 for other tasks."""
  name = task if task in data.OUTSIDE else data.tasks.find(task).name
  return SSF.get(name, SSF["cifar100"])


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
