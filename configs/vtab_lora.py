"""LoRA-8 on the fused qkv (one A for q, k and v) on VTAB-1k: ViT-B/16, as NOAH and SPT run it.

They load the original in21k checkpoint, normalise with ImageNet's statistics and overwrite LoRA's
initial values; here: AugReg, its own normalisation, B = 0. NOAH's own table is not reproducible to
the digit from its release (its issue 15); not run here. Trained: 294,912 of 85,798,656, and head.

    python train.py --config=configs/vtab_lora.py:task=cifar100,backbone=vit_b16

Needs the image-list folders in data/vtab-1k/<task>/ (made by NOAH's data/vtab-source/get_vtab1k.py)
and AugReg's B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import vtab


def get_config(argument=""):
  config = vtab.start(argument, ("lora",))
  config.lora.sites = ".*/attn/(q|k|v)"
  config.lora.share = ("q", "k", "v")
  config.lora.rank = 8
  config.lora.alpha = 8.0  # scale 1
  config.lora.dropout = 0.1
  config.optim.lr = 1e-3  # peak, absolute, for batch 64
  config.optim.warmup_lr = 1e-6
  config.optim.min_lr = 1e-5
  config.optim.lag = 1  # their loop steps the schedule after the epoch: 0 and 1 run at warmup_lr
  config.optim.weight_decay = 1e-4  # decoupled; on matrices only
  config.model.drop_path = 0.1  # last block's rate
  return config.lock()
