"""Linear probing on FGVC: ViT-B/16, in VPT's recipe.

VPT prints a mean of 79.32, best of its grid; learning rate and weight decay of its SGD are to be
chosen, see fgvc.vpt; not run here. Trained: the head alone.

    python train.py --config=configs/fgvc_linear.py:task=cub_200_2011,backbone=vit_b16

Needs the data set's own folder in data/fgvc/, as published or with VPT's JSON lists, and AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import fgvc


def get_config(argument=""):
  config = fgvc.vpt_sgd(argument, ("linear",))
  return config.lock()
