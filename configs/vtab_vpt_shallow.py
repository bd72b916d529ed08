"""VPT-shallow on VTAB-1k: ViT-B/16, as many prompts as the paper has for each task.

VPT chooses learning rate and weight decay of SGD from a grid for each task and does not publish the
choice; here: NOAH's recipe. VPT prints 64.85 as the mean of the 19 tasks (67.82 of the three
groups), best of its grid; not run here. Trained: 768 a prompt, of 85,798,656, and the head.

    python train.py --config=configs/vtab_vpt_shallow.py:task=cifar100,backbone=vit_b16

Needs the image-list folders in data/vtab-1k/<task>/ (made by NOAH's data/vtab-source/get_vtab1k.py)
and AugReg's B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import recipe, vtab


def get_config(argument=""):
  config = vtab.noah(argument, ("vpt",))
  config.vpt.deep = False
  config.vpt.length = recipe.of_task(vtab.PROMPTS, config.task).shallow
  return config.lock()
