"""Pretraining of a tiny backbone (tiny_vit, tiny_swin, tiny_convnext: 1 to 2 million parameters) on
24,000 drawn pictures and the 512 groups that DINOv2 ViT-S/14 sorts them into: under an hour on two
CPU cores (a ViT step of 128 images takes 0.6 s there).

    python train.py --config=configs/pretrain_tiny.py:backbone=tiny_vit --config.merge=True

The merged weights of the run are weights for other runs:

    python train.py --config=configs/quickstart.py:backbone=tiny_vit \\
      --config.weights=runs/mini_pretrain-tiny_vit-full-s0/merged.safetensors
"""

from peft_jax.train import config as config_lib


def get_config(argument=""):
  given = config_lib.parse_argument(argument, {"backbone": "tiny_vit"})
  config = config_lib.default().unlock()
  config.task = "mini_pretrain"
  config.model.name = given["backbone"]
  config.weights = "random"
  config.methods = ("full",)
  config.data.augment = "flip"
  config.batch_size = 128
  config.label_smoothing = 0.1
  config.optim.lr = 1e-3  # peak, absolute
  config.optim.weight_decay = 0.05
  config.optim.clip = 1.0
  config.optim.warmup_epochs = 1
  config.optim.warmup_lr = 1e-5
  config.optim.epochs = 20
  config.eval.every_epochs = 5
  config.checkpoint.every_steps = 200
  return config.lock()
