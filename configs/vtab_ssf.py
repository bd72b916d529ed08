"""SSF on VTAB-1k: ViT-B/16, AugReg, ImageNet-21k, with the learning rate, weight decay and drop
path of each task's published script (SSF: train_scripts/vit/vtab).

Published: 73.10 as the mean of 19 tasks, 75.69 as the mean of the three groups, each task at its
best epoch on the test split; not run here. Trained: 205,824 of 85,798,656, and the head.

    python train.py --config=configs/vtab_ssf.py:task=cifar100,backbone=vit_b16

Needs the image-list folders in data/vtab-1k/<task>/ (made by NOAH's data/vtab-source/get_vtab1k.py)
and AugReg's B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import recipe, vtab


def get_config(argument=""):
  config = vtab.start(argument, ("ssf",))
  values = recipe.of_task(vtab.SSF, config.task)
  config.optim.lr = values.lr  # peak, absolute, for batch 64
  config.optim.weight_decay = values.weight_decay  # decoupled; of SSF's variables only the head's
  config.model.drop_path = values.drop_path  # last block's rate
  config.optim.cooldown_epochs = 10  # at the floor: timm's schedule runs 110 epochs
  return config.lock()
