"""Bias tuning, BitFit on ImageNet-1k, all of it, in SSF's recipe.

SAN Table 1 prints 82.74 for ViT-B/16; no script for it came out; not run here. Trained: 102,912 of
85,798,656, and the head.

    python train.py --config=configs/imagenet_bias.py:backbone=vit_b16

Needs train/ and val/, one folder a class, in data/imagenet/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general


def get_config(argument=""):
  config = general.start(argument, ("bias",), "imagenet")
  return config.lock()
