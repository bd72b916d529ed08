"""AdaptFormer-64, beside the MLP of every block, on FGVC: ViT-B/16, in SPT's recipe.

SPT's Table 1 prints a mean of 85.1 and 0.44 % of the parameters, which no width gives; its scripts
for FGVC never came out, so it cannot be checked. V-PETL Bench prints 88.48; not run here. Trained:
1,189,632 of 85,798,656, and the head.

    python train.py --config=configs/fgvc_adaptformer.py:task=cub_200_2011,backbone=vit_b16

Needs the data set's own folder in data/fgvc/, as published or with VPT's JSON lists, and AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import fgvc


def get_config(argument=""):
  config = fgvc.spt(argument, ("adaptformer",))
  config.adaptformer.width = 64
  return config.lock()
