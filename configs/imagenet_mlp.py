"""MLP-3, a head of two hidden layers, on ImageNet-1k, all of it, in SSF's recipe for a linear
probe.

None of the papers has it on ImageNet-1k; not run here. Trained: the head alone, 1,184,256 of its
numbers in the hidden layers.

    python train.py --config=configs/imagenet_mlp.py:backbone=vit_b16

Needs train/ and val/, one folder a class, in data/imagenet/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general


def get_config(argument=""):
  config = general.start(argument, ("mlp",), "imagenet", "linear_probe")
  return config.lock()
