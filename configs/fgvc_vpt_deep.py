"""VPT-deep on FGVC: ViT-B/16, as many prompts as the paper has for each data set.

VPT prints a mean of 89.10, best of its grid. Learning rate and weight decay of its SGD are to be
chosen, see fgvc.vpt; not run here. Trained: 9,216 a prompt, of 85,798,656, and the head.

    python train.py --config=configs/fgvc_vpt_deep.py:task=cub_200_2011,backbone=vit_b16

Needs the data set's own folder in data/fgvc/, as published or with VPT's JSON lists, and AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import fgvc, recipe


def get_config(argument=""):
  config = fgvc.vpt_sgd(argument, ("vpt",))
  config.vpt.deep = True
  config.vpt.length = recipe.of_task(fgvc.PROMPTS, config.task).deep
  config.vpt.dropout = 0.1
  if config.vpt.length >= 100:
    config.batch_size = 64
    config.optim.lr /= 2  # in proportion to the batch
  return config.lock()
