"""VPT-deep on CIFAR-100, all of it, in SSF's recipe with 50 prompts.

SAN Table 1 prints 93.17 for ViT-B/16. 50 is the number with which SSF and GPS time it; it gives
1.03 % of the parameters as the mean of CIFAR-100 and ImageNet, where the table has 1.42; no script
for it came out; not run here. On a ConvNeXt: a frame of 4 pixels. Trained: 9,216 a prompt, of
85,798,656, and the head.

    python train.py --config=configs/cifar100_vpt_deep.py:backbone=vit_b16

Needs cifar-100-binary.tar.gz unpacked in data/cifar100/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general, recipe


def get_config(argument=""):
  config = general.start(argument, ("vpt",), "cifar100_full")
  config.vpt.deep = True
  config.vpt.length = 4 if recipe.is_convnext(config) else 50
  config.vpt.dropout = 0.1
  return config.lock()
