"""Linear probing on ImageNet-1k, all of it, as SSF's scripts run ViT-B/16, swin_b and convnext_b.

SAN Table 1 prints 82.04 for ViT-B/16; not run here. Trained: the head alone.

    python train.py --config=configs/imagenet_linear.py:backbone=vit_b16

Needs train/ and val/, one folder a class, in data/imagenet/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general


def get_config(argument=""):
  config = general.start(argument, ("linear",), "imagenet", "linear_probe")
  return config.lock()
