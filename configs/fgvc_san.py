"""SAN on FGVC: ViT-B/16, AugReg, ImageNet-21k.

Images follow SSF's protocol, as the paper says; the released script adds RandAugment and crops
bicubically. Optimizer, batch and warm-up are the script's; its best learning rate of {1e-2, 5e-3,
2.5e-3, 1e-3, 5e-4} for each data set is not published. SAN Table 1 prints a mean of 91.62, each at
its best epoch on the test split; not run here. Trained: 186,624 of 85,798,656, and the head.

    python train.py --config=configs/fgvc_san.py:task=cub_200_2011,backbone=vit_b16

Needs the data set's own folder in data/fgvc/, as published or with VPT's JSON lists, and AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import fgvc


def get_config(argument=""):
  config = fgvc.timm(argument, ("san",))
  config.optim.lr = 1e-3  # peak, absolute, for batch 64
  config.optim.warmup_lr = 1e-4  # lr / 10
  config.optim.weight_decay = 0.0
  return config.lock()
