"""Norm tuning, the scales and biases of all layer norms, on FGVC: ViT-B/16, in VPT's recipe.

None of the papers has it on FGVC; not run here. Trained: 38,400 of 85,798,656, and the head.

    python train.py --config=configs/fgvc_norm.py:task=cub_200_2011,backbone=vit_b16

Needs the data set's own folder in data/fgvc/, as published or with VPT's JSON lists, and AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import fgvc


def get_config(argument=""):
  config = fgvc.vpt(argument, ("norm",))
  config.optim.lr = 2.5e-3  # as for the biases: choose on val
  return config.lock()
