"""DoRA-8 on the fused qkv (one A for q, k and v) on VTAB-1k: ViT-B/16, in NOAH's recipe for LoRA.

None of the papers has it on VTAB-1k; not run here.
Trained: 322,560 of 85,798,656, and the head.

    python train.py --config=configs/vtab_dora.py:task=cifar100,backbone=vit_b16

Needs the image-list folders in data/vtab-1k/<task>/ (made by NOAH's data/vtab-source/get_vtab1k.py)
and AugReg's B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import recipe, vtab


def get_config(argument=""):
  config = vtab.noah(argument, ("dora",))
  recipe.lora_on_qkv(config, rank=8, method="dora")
  config.dora.dropout = 0.1
  return config.lock()
