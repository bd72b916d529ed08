"""VPT-deep on VTAB-1k: ViT-B/16, as many prompts as the paper has for each task.

VPT chooses learning rate and weight decay of SGD from a grid for each task and does not publish the
choice; here: NOAH's recipe. VPT prints 69.43 as the mean of the 19 tasks (71.97 of the three
groups; 71.55 with swin_b), best of its grid; not run here.
Trained: 9,216 a prompt, of 85,798,656, and the head.

    python train.py --config=configs/vtab_vpt_deep.py:task=cifar100,backbone=vit_b16

Needs the image-list folders in data/vtab-1k/<task>/ (made by NOAH's data/vtab-source/get_vtab1k.py)
and AugReg's B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import recipe, vtab


def get_config(argument=""):
  config = vtab.noah(argument, ("vpt",))
  config.vpt.deep = True
  prompts = recipe.of_task(vtab.PROMPTS, config.task)
  config.vpt.length = prompts.swin_deep if recipe.backbone(config) == "swin_b" else prompts.deep
  config.vpt.dropout = 0.1
  return config.lock()
