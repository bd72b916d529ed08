"""GPS on VTAB-1k: ViT-B/16, AugReg, ImageNet-21k, with the learning rate, batch, drop path and K of
each task's published script (GPS: train_scripts/vit/vtab), as they are now.

Published: 75.18 as the mean of 19 tasks, each at its best epoch on the test split; its 81.1 for
CIFAR-100 comes from other code, its authors say, and users of the scripts report 68.7; not run
here. The scripts of the first days (release=first) are those that give the paper's share of the
parameters, 0.25 %.
Trained: 167,424 of 85,798,656, and the head (K is 2 for patch_camelyon).

    python train.py --config=configs/vtab_gps.py:task=cifar100,backbone=vit_b16,release=now

Needs the image-list folders in data/vtab-1k/<task>/ (made by NOAH's data/vtab-source/get_vtab1k.py)
and AugReg's B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import recipe, vtab


def get_config(argument=""):
  config = vtab.start(argument, ("gps",), also=("release",))
  release = recipe.option(argument, "release", vtab.GPS_RELEASES)
  values = recipe.of_task(vtab.GPS_RELEASES[release], config.task)
  config.gps.k = values.k
  config.batch_size = values.batch_size
  config.optim.name = "adam"  # without weight decay
  config.optim.lr = values.lr  # peak, absolute, for batch_size
  config.optim.cooldown_epochs = 10  # at the floor: timm's schedule runs 110 epochs
  config.model.drop_path = values.drop_path  # last block's rate
  config.gps.drop_path = values.drop_path  # it is on while scoring, too
  return config.lock()
