"""VPT-shallow on ImageNet-1k, all of it, in SSF's recipe with 200 prompts.

SAN Table 1 prints 82.08 for ViT-B/16. 200 is the number with which SSF and GPS time it; it gives
0.67 % of the parameters as the mean of CIFAR-100 and ImageNet, where the table has 0.91; no script
for it came out; not run here. On a ConvNeXt: a frame of 4 pixels. Trained: 768 a prompt, of
85,798,656, and the head.

    python train.py --config=configs/imagenet_vpt_shallow.py:backbone=vit_b16

Needs train/ and val/, one folder a class, in data/imagenet/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general, recipe


def get_config(argument=""):
  config = general.start(argument, ("vpt",), "imagenet")
  config.vpt.deep = False
  config.vpt.length = 4 if recipe.is_convnext(config) else 200
  return config.lock()
