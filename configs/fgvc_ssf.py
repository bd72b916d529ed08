"""SSF on FGVC: ViT-B/16, AugReg, ImageNet-21k, with the learning rate, drop path and average of
each data set's published script (SSF: train_scripts/vit/fgvc).

Published: a mean of 90.72, each at its best epoch on the test split. For Flowers and Cars the
scripts read folders train and val whose contents they do not say; here: trainval and test; not run
here. Trained: 205,824 of 85,798,656, and the head.

    python train.py --config=configs/fgvc_ssf.py:task=cub_200_2011,backbone=vit_b16

Needs the data set's own folder in data/fgvc/, as published or with VPT's JSON lists, and AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import fgvc, recipe


def get_config(argument=""):
  config = fgvc.timm(argument, ("ssf",))
  values = recipe.of_task(fgvc.SSF, config.task)
  config.optim.lr = values.lr  # peak, absolute, for batch 64
  config.optim.weight_decay = 0.05  # decoupled; of SSF's variables only the head's
  config.optim.cooldown_epochs = 10  # at the floor: timm's schedule runs 110 epochs
  config.model.drop_path = values.drop_path  # last block's rate
  config.ema = values.ema  # decay per step; the average is what is evaluated
  return config.lock()
