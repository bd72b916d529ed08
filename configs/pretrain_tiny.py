"""Pretraining of a tiny backbone (tiny_vit, tiny_swin, tiny_convnext: 1 to 2 million parameters) on
24,000 drawn pictures and the 512 groups that DINOv2 ViT-S/14 sorts them into.

    python train.py --config=configs/pretrain_tiny.py:backbone=tiny_vit --config.merge=True
    python -m peft_jax weights convert runs/mini_pretrain-tiny_vit-full-s0/merged.safetensors \\
      peft_jax/weights/tiny/tiny_vit.npz --no-head --dtype=float16

made the weights that come with peft_jax: 47 minutes for tiny_vit, 32 for tiny_swin, 86 for
tiny_convnext on one core of an AMD EPYC each. What their features are worth on other tasks:
benchmarks/README.md.
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
  config.optim.epochs = 12
  config.eval.every_epochs = 5
  config.checkpoint.every_steps = 200
  return config.lock()
