"""AdaptFormer-64, beside the MLP of every block, on CIFAR-100, all of it, in SSF's recipe.

None of the papers has it on CIFAR-100 with this backbone; its own has SGD and MAE's ViT-B/16. Not
run here. Trained: 1,189,632 of 85,798,656, and the head.

    python train.py --config=configs/cifar100_adaptformer.py:backbone=vit_b16

Needs cifar-100-binary.tar.gz unpacked in data/cifar100/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general


def get_config(argument=""):
  config = general.start(argument, ("adaptformer",), "cifar100_full")
  config.adaptformer.width = 64
  return config.lock()
