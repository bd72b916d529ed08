"""VPT-shallow on CIFAR-100, all of it, in SSF's recipe with 200 prompts.

SAN Table 1 prints 90.38 for ViT-B/16. 200 is the number with which SSF and GPS time it; it gives
0.67 % of the parameters as the mean of CIFAR-100 and ImageNet, where the table has 0.91; no script
for it came out; not run here. On a ConvNeXt: a frame of 4 pixels. Trained: 768 a prompt, of
85,798,656, and the head.

    python train.py --config=configs/cifar100_vpt_shallow.py:backbone=vit_b16

Needs cifar-100-binary.tar.gz unpacked in data/cifar100/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general, recipe


def get_config(argument=""):
  config = general.start(argument, ("vpt",), "cifar100_full")
  config.vpt.deep = False
  config.vpt.length = 4 if recipe.is_convnext(config) else 200
  return config.lock()
