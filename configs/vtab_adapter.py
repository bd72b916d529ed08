"""Adapter-8, behind the MLP of every block, on VTAB-1k: ViT-B/16, as NOAH and SPT run it.

They overwrite the initial values (`--config.adapter.initial=trunc_normal_both`); here the adapter
starts at zero. NOAH's and SPT's tables have 73.9 as the mean of the three groups, NOAH's issue 15
reports 71.65 from its release. 55.82 of the 19 tasks in GPS's and SAN's is VPT's Adapter-256, whose
released code starts both matrices at zero, where they stay: nothing to aim at. Not run here.
Trained: 156,768 of 85,798,656, and the head.

    python train.py --config=configs/vtab_adapter.py:task=cifar100,backbone=vit_b16

Needs the image-list folders in data/vtab-1k/<task>/ (made by NOAH's data/vtab-source/get_vtab1k.py)
and AugReg's B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import vtab


def get_config(argument=""):
  config = vtab.noah(argument, ("adapter",))
  config.adapter.width = 8
  config.adapter.dropout = 0.1
  return config.lock()
