"""A pretrained backbone, one method and a task that needs no download.

On DINOv2 ViT-S/14, minutes on a CPU; the default task, counting the objects of a drawn scene, needs
the pretrained features and their tuning (the results table of README.md):

    python train.py --config=configs/quickstart.py
    python train.py --config=configs/quickstart.py:task=mini_digits,methods=lora

On a tiny backbone that comes with peft_jax (tiny is tiny_vit), about a minute:

    python train.py --config=configs/quickstart.py:backbone=tiny,task=mini_texture
    python train.py --config=configs/quickstart.py:backbone=tiny_swin,methods=san,task=mini_fashion
"""

from peft_jax.train import config as config_lib


def get_config(argument=""):
  given = config_lib.parse_argument(
    argument, {"task": "mini_clevr_count", "backbone": "dinov2_vits14", "methods": "san"}
  )
  config = config_lib.default().unlock()
  config.task = given["task"]
  config.methods = (given["methods"],)
  config.model.name = {"tiny": "tiny_vit"}.get(given["backbone"], given["backbone"])
  if given["backbone"].startswith("dinov2"):
    config.model.image_size = 70  # 5 x 5 patches
  config.batch_size = 32
  config.optim.lr = 4e-3  # peak, absolute
  config.optim.warmup_epochs = 1
  config.optim.warmup_lr = 4e-4
  config.optim.epochs = 10
  config.eval.every_epochs = 10
  config.checkpoint.every_steps = 50
  return config.lock()
