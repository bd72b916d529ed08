"""Tasks, their images, and what happens to a batch before the model sees it."""

from peft_jax.data import view
from peft_jax.data.augment import augment
from peft_jax.data.catalog import OUTSIDE, open
from peft_jax.data.mix import erase, mix
from peft_jax.data.pipeline import normalize, order, steps_per_epoch
from peft_jax.data.split import Dataset, Split, tfds_order
from peft_jax.data.tasks import FGVC, GENERAL, MINI_VTAB, TASKS, VTAB, Task

__all__ = [
  "FGVC",
  "GENERAL",
  "MINI_VTAB",
  "OUTSIDE",
  "TASKS",
  "VTAB",
  "Dataset",
  "Split",
  "Task",
  "augment",
  "erase",
  "mix",
  "normalize",
  "open",
  "order",
  "steps_per_epoch",
  "tfds_order",
  "view",
]
