"""LoRA-16 on the fused qkv (one A for q, k and v) on CIFAR-100, all of it, in SSF's recipe.

SAN Table 1 prints 93.53 for ViT-B/16 and 1.18 % of the parameters as the mean of CIFAR-100 and
ImageNet, which is rank 16; no script for it came out; not run here. On a ConvNeXt: all linear
layers and convolutions. Trained: 589,824 of 85,798,656, and the head.

    python train.py --config=configs/cifar100_lora.py:backbone=vit_b16

Needs cifar-100-binary.tar.gz unpacked in data/cifar100/ and, in weights/, AugReg's
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (others: recipe.WEIGHTS).
"""

from peft_jax.train import general, recipe


def get_config(argument=""):
  config = general.start(argument, ("lora",), "cifar100_full")
  recipe.lora_on_qkv(config, rank=16)
  return config.lock()
