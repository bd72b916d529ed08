"""mini_pretrain: 25,000 pictures, each labelled with the group that DINOv2 ViT-S/14 puts it in.

What the tiny backbones are pretrained on (configs/pretrain_tiny.py): to tell 512 groups of similar
pictures apart is to imitate a network that has seen real photographs. The groups are stored, so
that neither DINOv2 nor a label made by a person is needed. make.py made them.
"""

import numpy as np
from PIL import Image

from peft_jax.data.mini_pretrain import pictures
from peft_jax.data.mini_vtab import stored
from peft_jax.data.mini_vtab.drawn import Drawn
from peft_jax.data.split import Dataset, Split

NAME = "mini_pretrain"
GROUPS = 512
COUNTS = {"train": 24000, "val": 1000}
DRAWING = "v1"  # part of cache names and fingerprints: raise it when pictures.py changes


def open_task(size, resize):
  """The Dataset; a run trains on "train" and is judged on "val"."""
  labels = stored.arrays("labels.npz", "mini_pretrain")["labels"].astype(np.int32)
  total, shape = sum(COUNTS.values()), (pictures.SIDE, pictures.SIDE, 3)
  assert labels.shape == (total,)
  drawn = Drawn(f"{NAME}_{DRAWING}", total, shape, pictures.picture)
  splits, start = {}, 0
  for name, count in COUNTS.items():
    splits[name] = Split(
      name=name,
      labels=labels[start : start + count],
      keys=tuple(str(i) for i in range(start, start + count)),
      read=lambda i, start=start: Image.fromarray(drawn(start + i)),
      content=lambda: f"{NAME} {DRAWING}".encode(),
      size=size,
      resize=resize,
    )
    start += count
  return Dataset(
    name=NAME,
    group="natural",
    num_classes=GROUPS,
    class_names=None,
    splits=splits,
    train_split="train",
    eval_split="val",
    source="mini_pretrain, part of peft_jax",
  )
