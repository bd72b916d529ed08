"""Linear probing on VTAB-1k: ViT-B/16.

VPT chooses learning rate and weight decay of SGD from a grid for each task and does not publish the
choice; here: NOAH's recipe. VPT prints 52.94 as the mean of the 19 tasks (57.64 of the three
groups); SAN's Table 1 has 53.30, and rows that give 53.00. Not run here.
Trained: the head alone.

    python train.py --config=configs/vtab_linear.py:task=cifar100,backbone=vit_b16

Needs the image-list folders in data/vtab-1k/<task>/ (made by NOAH's data/vtab-source/get_vtab1k.py)
and AugReg's B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import vtab


def get_config(argument=""):
  config = vtab.noah(argument, ("linear",))
  config.optim.lr = 1e-3  # VPT's grid is one of SGD: choose on val200
  return config.lock()
