"""Adapter-8, behind the MLP of every block, on FGVC: ViT-B/16, in SPT's recipe.

SPT's Table 1 prints a mean of 85.5, but its five numbers are those of VPT's Adapter-8, of another
width (a reduction by 8), whose released code starts both matrices at zero, where they stay; 85.66
in GPS's tables (and SAN's, in its column of BitFit) is VPT's Adapter-64. Neither is a number to aim
at with an adapter that learns. Not run here. Trained: 156,768 of 85,798,656, and the head.

    python train.py --config=configs/fgvc_adapter.py:task=cub_200_2011,backbone=vit_b16

Needs the data set's own folder in data/fgvc/, as published or with VPT's JSON lists, and AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import fgvc


def get_config(argument=""):
  config = fgvc.spt(argument, ("adapter",))
  config.adapter.width = 8
  config.adapter.dropout = 0.1
  return config.lock()
