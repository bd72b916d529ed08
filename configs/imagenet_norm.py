"""Norm tuning, the scales and biases of all norms, on ImageNet-1k, all of it, in SSF's recipe.

None of the papers has it on ImageNet-1k; not run here. Trained: 38,400 of 85,798,656, and the head.

    python train.py --config=configs/imagenet_norm.py:backbone=vit_b16

Needs train/ and val/, one folder a class, in data/imagenet/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general


def get_config(argument=""):
  config = general.start(argument, ("norm",), "imagenet")
  return config.lock()
