"""SAN on a pretrained DINOv2 ViT-S/14 and a task that needs no download: minutes on a CPU.

The default task, counting the objects of a drawn scene, needs the pretrained features and their
tuning: see the results table of README.md.

    python train.py --config=configs/quickstart.py
    python train.py --config=configs/quickstart.py:task=mini_digits --config.methods=lora
"""

from peft_jax.train import config as config_lib


def get_config(argument=""):
  given = config_lib.parse_argument(
    argument, {"task": "mini_clevr_count", "backbone": "dinov2_vits14"}
  )
  config = config_lib.default().unlock()
  config.task = given["task"]
  config.model.name = given["backbone"]
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
