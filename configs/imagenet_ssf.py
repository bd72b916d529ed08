"""SSF on ImageNet-1k, all of it, as its scripts run ViT-B/16, swin_b and convnext_b.

Published for ViT-B/16: 83.10, its best epoch on val; the 0.69 % of the parameters that SAN Table 1
prints as the mean of CIFAR-100 and ImageNet is 0.73 by count. Not run here. Trained: 205,824 of
85,798,656, and the head.

    python train.py --config=configs/imagenet_ssf.py:backbone=vit_b16

Needs train/ and val/, one folder a class, in data/imagenet/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general


def get_config(argument=""):
  config = general.start(argument, ("ssf",), "imagenet")
  return config.lock()
