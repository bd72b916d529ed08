"""GPS on FGVC: ViT-B/16, AugReg, ImageNet-21k, with the learning rate, batch, drop path, K and
average of each data set's published script (GPS: train_scripts/vit/fgvc).

Published: a mean of 91.78, each at its best epoch on the test split; its 92.2 for Dogs comes from
other code, its authors say, and the scripts train more than the share of the parameters that the
paper prints; not run here. Entries are chosen from random crops of the images as they are judged,
not of the whole photographs. Trained: 251,136 of 85,798,656, and the head (K is 2; others: GPS in
train/fgvc.py).

    python train.py --config=configs/fgvc_gps.py:task=cub_200_2011,backbone=vit_b16

Needs the data set's own folder in data/fgvc/, as published or with VPT's JSON lists, and AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import fgvc, recipe


def get_config(argument=""):
  config = fgvc.timm(argument, ("gps",))
  values = recipe.of_task(fgvc.GPS, config.task)
  config.gps.k = values.k
  config.batch_size = values.batch_size
  config.data.erasing = 0.0  # its loader leaves it out
  config.optim.name = "adam"  # without weight decay
  config.optim.lr = values.lr  # peak, absolute, for batch_size
  config.optim.cooldown_epochs = 10  # at the floor: timm's schedule runs 110 epochs
  config.model.drop_path = values.drop_path  # last block's rate
  config.gps.drop_path = values.drop_path  # it is on while scoring, too
  config.ema = values.ema  # decay per step; the average is what is evaluated
  return config.lock()
