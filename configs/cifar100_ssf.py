"""SSF on CIFAR-100, all of it, as its scripts run ViT-B/16, swin_b and convnext_b.

Published for ViT-B/16: 93.99, its best epoch on the test split (93.96 after the last); the 0.69 %
of the parameters that SAN Table 1 prints as the mean of CIFAR-100 and ImageNet is 0.73 by count.
Not run here. Trained: 205,824 of 85,798,656, and the head.

    python train.py --config=configs/cifar100_ssf.py:backbone=vit_b16

Needs cifar-100-binary.tar.gz unpacked in data/cifar100/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general


def get_config(argument=""):
  config = general.start(argument, ("ssf",), "cifar100_full")
  return config.lock()
