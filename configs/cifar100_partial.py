"""Partial-1, the last block and the final norm, on CIFAR-100, all of it, in SSF's recipe for full
fine-tuning.

None of the papers has it on CIFAR-100; not run here. Trained: 7,089,408 of 85,798,656, and the
head.

    python train.py --config=configs/cifar100_partial.py:backbone=vit_b16

Needs cifar-100-binary.tar.gz unpacked in data/cifar100/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general


def get_config(argument=""):
  config = general.start(argument, ("partial",), "cifar100_full", "full")
  return config.lock()
