"""SPT-Adapter on FGVC: ViT-B/16, Adapter-8 behind the matrices a task's gradient asks for.

SPT's Table 1 prints a mean of 89.5 (0.41 %) and 89.8 (0.47 %), 0.21 % of it the head; its scripts
for FGVC never came out, so which budgets these are is not known. Not run here. It scores what is
judged: the centre of each training image. The release overwrites the initial values
(`--config.adapter.initial=trunc_normal_both`); here up is 0.
Trained: 400,000 of 85,798,656, or the nearest that the sweep finds, and the head.

    python train.py --config=configs/fgvc_spt_adapter.py:task=cub_200_2011,budget=400000

Needs the data set's own folder in data/fgvc/, as published or with VPT's JSON lists, and AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import fgvc, recipe


def get_config(argument=""):
  config = fgvc.spt(argument, ("spt", "adapter"), also=("budget",))
  recipe.spt_modules(config, argument, "adapter")
  return config.lock()
