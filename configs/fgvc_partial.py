"""Partial-1, the last block and the final norm, on FGVC: ViT-B/16, in VPT's recipe.

VPT prints five numbers with a mean of 82.66, best of its grid; the learning rate is to be chosen,
see fgvc.vpt; not run here. Trained: 7,089,408 of 85,798,656, and the head.

    python train.py --config=configs/fgvc_partial.py:task=cub_200_2011,backbone=vit_b16

Needs the data set's own folder in data/fgvc/, as published or with VPT's JSON lists, and AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import fgvc


def get_config(argument=""):
  config = fgvc.vpt(argument, ("partial",))
  config.optim.lr = 2.5e-4  # of VPT's grid at batch 128: 5e-5, 2.5e-4, 5e-4, 2.5e-3; choose on val
  return config.lock()
