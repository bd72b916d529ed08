"""LoRA-8 on the fused qkv (one A for q, k and v) on FGVC: ViT-B/16, in SPT's recipe.

SPT overwrites LoRA's initial values (`--config.lora.initial=trunc_normal_both`); here B = 0. Its
Table 1 prints a mean of 86.0, and 84.8 for LoRA-16, which SAN's Table 1 has in its column of
Adapter; its scripts for FGVC never came out, so neither can be checked. Not run here. Trained:
294,912 of 85,798,656, and the head.

    python train.py --config=configs/fgvc_lora.py:task=cub_200_2011,backbone=vit_b16

Needs the data set's own folder in data/fgvc/, as published or with VPT's JSON lists, and AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import fgvc, recipe


def get_config(argument=""):
  config = fgvc.spt(argument, ("lora",))
  recipe.lora_on_qkv(config, rank=8)
  config.lora.dropout = 0.1
  return config.lock()
