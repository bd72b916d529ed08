"""Full fine-tuning on VTAB-1k: ViT-B/16.

VPT chooses learning rate and weight decay of AdamW from a grid for each task and does not publish
the choice; here: NOAH's recipe. VPT prints 65.57 as the mean of the 19 tasks (68.97 of the three
groups); not run here.
Trained: 85,798,656, and the head.

    python train.py --config=configs/vtab_full.py:task=cifar100,backbone=vit_b16

Needs the image-list folders in data/vtab-1k/<task>/ (made by NOAH's data/vtab-source/get_vtab1k.py)
and AugReg's B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import vtab


def get_config(argument=""):
  config = vtab.noah(argument, ("full",))
  config.optim.lr = 5e-5  # VPT's grid: 5e-5, 2.5e-4, 5e-4, 2.5e-3; choose on val200
  return config.lock()
