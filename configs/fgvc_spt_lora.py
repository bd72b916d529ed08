"""SPT-LoRA on FGVC: ViT-B/16, LoRA-8 where a task's gradient asks for it, and single weights.

SPT's Table 1 prints a mean of 89.3 (0.41 %) and 90.1 (0.60 %), 0.21 % of it the head; its scripts
for FGVC never came out, so which budgets these are is not known. Not run here. It scores what is
judged: the centre of each training image. The release overwrites LoRA's initial values
(`--config.lora.initial=trunc_normal_both`); here B = 0.
Trained: 400,000 of 85,798,656, or the nearest that the sweep finds, and the head.

    python train.py --config=configs/fgvc_spt_lora.py:task=cub_200_2011,budget=400000

Needs the data set's own folder in data/fgvc/, as published or with VPT's JSON lists, and AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import fgvc, recipe


def get_config(argument=""):
  config = fgvc.spt(argument, ("spt", "lora"), also=("budget",))
  recipe.spt_modules(config, argument, "lora")
  return config.lock()
