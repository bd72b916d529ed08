"""AdaptFormer-64, beside the MLP of every block, on VTAB-1k: ViT-B/16, in NOAH's recipe.

AdaptFormer's own paper trains with SGD on whole data sets. SPT's Table 1 has 74.8 as the mean of
the three groups (V-PETL Bench: 72.32 of the 19 tasks) and 0.36 % of the parameters, which is width
16 without the head (`--config.adaptformer.width=16`: 304,320); not run here.
Trained: 1,189,632 of 85,798,656, and the head.

    python train.py --config=configs/vtab_adaptformer.py:task=cifar100,backbone=vit_b16

Needs the image-list folders in data/vtab-1k/<task>/ (made by NOAH's data/vtab-source/get_vtab1k.py)
and AugReg's B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import vtab


def get_config(argument=""):
  config = vtab.noah(argument, ("adaptformer",))
  config.adaptformer.width = 64
  return config.lock()
