"""Your own images, one folder a class: a pretrained DINOv2 ViT-S/14 tuned with SAN.

    python train.py --config=configs/folder.py --config.data.root=PATH
    python -m peft_jax predict runs/.../adapter.safetensors PHOTO.jpg

PATH holds train/<class>/ and test/<class>/ (or val/), or <class>/ folders alone, of which a fixed
fifth is then kept for testing.
"""

from peft_jax.train import config as config_lib


def get_config(argument=""):
  given = config_lib.parse_argument(argument, {"backbone": "dinov2_vits14"})
  config = config_lib.default().unlock()
  config.task = "folder"
  config.model.name = given["backbone"]
  config.model.image_size = 112 if given["backbone"].startswith("dinov2") else None
  config.data.augment = "crop_flip"
  config.batch_size = 32
  config.optim.lr = 2e-3  # peak, absolute
  config.optim.warmup_epochs = 1
  config.optim.warmup_lr = 2e-4
  config.optim.epochs = 20
  config.checkpoint.every_steps = 50
  config.eval.every_epochs = 5
  return config.lock()
