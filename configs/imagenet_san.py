"""SAN on ImageNet-1k, all of it: ViT-B/16, AugReg, ImageNet-21k; also swin_b, convnext_b.

Images, batch and epochs are SSF's, as the paper says (the released script augments alike, with
batch 64); optimizer and warm-up are the script's; its best learning rate of {1e-2, 5e-3, 2.5e-3,
1e-3, 5e-4} is not published. SAN Table 1 prints 83.69, its best epoch on val; not run here.
Trained: 186,624 of 85,798,656, and the head.

    python train.py --config=configs/imagenet_san.py:backbone=vit_b16

Needs train/ and val/, one folder a class, in data/imagenet/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general


def get_config(argument=""):
  config = general.start(argument, ("san",), "imagenet")
  config.optim.lr = 1e-3  # peak, absolute, for batch 256
  config.optim.warmup_lr = 1e-4  # lr / 10
  config.optim.min_lr = 1e-8
  config.optim.cooldown_epochs = 0
  config.optim.weight_decay = 0.0
  config.model.drop_path = 0.0
  config.ema = 0.0  # off
  return config.lock()
