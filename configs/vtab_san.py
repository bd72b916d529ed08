"""SAN on VTAB-1k: ViT-B/16, AugReg, ImageNet-21k.

Images follow SSF's protocol, as the paper says; the released script augments instead. Optimizer,
batch and warm-up are the script's; its best learning rate of {1e-2, 5e-3, 2.5e-3, 1e-3, 5e-4} per
task is not published. SAN Table 1 prints a mean of 75.00 (its rows average to 74.99) over 19
tasks, best epoch on the test split, and the means of Specialized and Structured at each other's
place; its scripts hold no list of all 19 tasks. Not run here.
Trained: 186,624 of 85,798,656, and the head.

    python train.py --config=configs/vtab_san.py:task=cifar100,backbone=vit_b16

Needs the image-list folders in data/vtab-1k/<task>/ (made by NOAH's data/vtab-source/get_vtab1k.py)
and AugReg's B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import vtab


def get_config(argument=""):
  config = vtab.start(argument, ("san",))
  config.optim.lr = 1e-3  # peak, absolute, for batch 64
  config.optim.warmup_lr = 1e-4  # lr / 10
  config.optim.weight_decay = 0.0
  return config.lock()
