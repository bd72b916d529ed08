"""SAN on CIFAR-100, all of it: ViT-B/16, AugReg, ImageNet-21k; also swin_b, convnext_b.

Images, batch and epochs are SSF's, as the paper says (the released script augments alike, with
batch 64); optimizer and warm-up are the script's; its best learning rate of {1e-2, 5e-3, 2.5e-3,
1e-3, 5e-4} is not published. SAN Table 1 prints 94.11, its best epoch on the test split; not run
here. Trained: 186,624 of 85,798,656, and the head.

    python train.py --config=configs/cifar100_san.py:backbone=vit_b16

Needs cifar-100-binary.tar.gz unpacked in data/cifar100/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general


def get_config(argument=""):
  config = general.san(argument, "cifar100_full")
  config.optim.lr = 1e-3  # peak, absolute, for batch 128
  return config.lock()
