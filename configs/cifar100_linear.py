"""Linear probing on CIFAR-100, all of it, as SSF's scripts run ViT-B/16, swin_b and convnext_b.

SAN Table 1 prints 88.70 for ViT-B/16; not run here. Trained: the head alone.

    python train.py --config=configs/cifar100_linear.py:backbone=vit_b16

Needs cifar-100-binary.tar.gz unpacked in data/cifar100/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general


def get_config(argument=""):
  config = general.start(argument, ("linear",), "cifar100_full", "linear_probe")
  return config.lock()
