"""Adapter-8, behind the MLP of every block, on CIFAR-100, all of it, in SSF's recipe.

SAN Table 1 prints 93.34 for ViT-B/16, of an adapter of unknown width (0.80 % of the parameters as
the mean of CIFAR-100 and ImageNet; width 8 has 0.68); no script for it came out; not run here.
Trained: 156,768 of 85,798,656, and the head.

    python train.py --config=configs/cifar100_adapter.py:backbone=vit_b16

Needs cifar-100-binary.tar.gz unpacked in data/cifar100/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general


def get_config(argument=""):
  config = general.start(argument, ("adapter",), "cifar100_full")
  config.adapter.width = 8
  return config.lock()
