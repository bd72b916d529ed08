"""CIFAR-100 and ImageNet-1k, all of their training images: SSF's recipe, the only one published.

Its scripts are for SSF, a linear probe and full fine-tuning; the other methods here take the values
of one of these. The result is the top-1 accuracy on CIFAR-100's test split or ImageNet's val after
the last epoch, of the average where there is one. SSF and SAN report their best epoch on that split
instead (SSF's log of CIFAR-100: 93.99 at epoch 92, the one printed, and 93.96 at the end): the best
of the epochs evaluated (eval.every_epochs) is here too, as best_epoch_test_accuracy.
"""

from __future__ import annotations

from typing import NamedTuple

from peft_jax.train import recipe


class Task(NamedTuple):
  """batch_size: in all; epochs: without the 10 at the floor that follow; root: of the data."""

  batch_size: int
  epochs: int
  warmup_epochs: int
  root: str


TASKS = {
  "cifar100_full": Task(128, 100, 10, "data/cifar100"),
  "imagenet": Task(256, 30, 5, "data/imagenet"),
}


class SSFValues(NamedTuple):
  """lr: peak, absolute, for the task's batch; drop_path: last block; ema: decay per step, 0 is off.

  warmup_lr, min_lr: rates of the first epoch and of the floor.
  """

  lr: float
  drop_path: float
  ema: float
  warmup_lr: float
  min_lr: float


# SSF: train_scripts/{vit,swin,convnext}/{cifar_100,imagenet_1k}/train_{ssf,linear_probe,full}.sh.
SSF = {
  ("vit_b16", "cifar100_full", "ssf"): SSFValues(1e-3, 0.0, 0.99992, 1e-7, 1e-8),
  ("vit_b16", "cifar100_full", "linear_probe"): SSFValues(1e-3, 0.0, 0.99992, 1e-7, 1e-8),
  ("vit_b16", "cifar100_full", "full"): SSFValues(5e-5, 0.0, 0.99992, 1e-7, 1e-8),
  ("vit_b16", "imagenet", "ssf"): SSFValues(1e-3, 0.1, 0.99992, 1e-7, 1e-8),
  ("vit_b16", "imagenet", "linear_probe"): SSFValues(1e-4, 0.1, 0.99992, 1e-7, 1e-8),
  ("vit_b16", "imagenet", "full"): SSFValues(1e-4, 0.2, 0.99992, 1e-7, 1e-8),
  ("swin_b", "cifar100_full", "ssf"): SSFValues(5e-3, 0.0, 0.0, 5e-7, 5e-8),
  ("swin_b", "cifar100_full", "linear_probe"): SSFValues(1e-3, 0.0, 0.0, 5e-7, 5e-8),
  ("swin_b", "cifar100_full", "full"): SSFValues(5e-5, 0.1, 0.0, 5e-7, 5e-8),
  ("swin_b", "imagenet", "ssf"): SSFValues(5e-3, 0.1, 0.0, 5e-7, 5e-8),
  ("swin_b", "imagenet", "linear_probe"): SSFValues(5e-3, 0.1, 0.0, 5e-7, 5e-8),
  ("swin_b", "imagenet", "full"): SSFValues(5e-5, 0.2, 0.0, 5e-7, 5e-8),
  ("convnext_b", "cifar100_full", "ssf"): SSFValues(1e-3, 0.0, 0.99992, 1e-7, 1e-8),
  ("convnext_b", "cifar100_full", "linear_probe"): SSFValues(1e-3, 0.0, 0.99992, 5e-7, 5e-8),
  ("convnext_b", "cifar100_full", "full"): SSFValues(5e-5, 0.2, 0.99992, 5e-7, 5e-8),
  ("convnext_b", "imagenet", "ssf"): SSFValues(1e-3, 0.1, 0.99992, 1e-7, 1e-8),
  ("convnext_b", "imagenet", "linear_probe"): SSFValues(1e-3, 0.1, 0.99992, 5e-7, 5e-8),
  ("convnext_b", "imagenet", "full"): SSFValues(5e-5, 0.2, 0.99992, 5e-7, 5e-8),
}


def start(argument, methods, task, mode="ssf"):
  """SSF's config for a task of TASKS, unlocked, with `methods` and the values of one `mode`.

  argument: "backbone=vit_b16", the default; backbones without values of their own take its. mode:
  "ssf", "linear_probe" or "full". Data: TASKS[task].root; weights: in21k files in weights/, see
  recipe.WEIGHTS.
  """
  config = recipe.start(argument, methods, task=task, root=TASKS[task].root)
  recipe.timm_views(config)
  config.data.rand_augment = "rand-m9-mstd0.5-inc1"  # of timm: two of 15, magnitude N(9, 0.5)
  config.batch_size = TASKS[task].batch_size  # in all; the last, partial batch is dropped
  config.optim.epochs = TASKS[task].epochs
  config.optim.warmup_epochs = TASKS[task].warmup_epochs
  config.optim.cooldown_epochs = 10  # at the floor, as timm's schedule appends them
  config.optim.weight_decay = 0.05  # decoupled; on matrices only
  at = recipe.backbone(config)
  values = SSF.get((at, task, mode), SSF["vit_b16", task, mode])
  config.optim.lr = values.lr
  config.optim.warmup_lr = values.warmup_lr
  config.optim.min_lr = values.min_lr
  config.model.drop_path = values.drop_path
  config.ema = values.ema
  return config


def san(argument, task):
  """`start` with what differs in SAN's released script: no decay, drop path or average."""
  config = start(argument, ("san",), task)
  config.optim.warmup_lr = 1e-4  # lr / 10
  config.optim.min_lr = 1e-8
  config.optim.cooldown_epochs = 0
  config.optim.weight_decay = 0.0
  config.model.drop_path = 0.0
  config.ema = 0.0  # off
  return config
