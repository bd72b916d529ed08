"""MLP-k: the backbone frozen, a head of k linear layers instead of one.

    x -> dropout(norm(relu(x W + b)))        k - 1 times, D wide;   logits = x W + b

Source: a baseline of VPT, Jia et al. 2022, arXiv:2203.12119, and its code.
Start: hidden kernels N(0, 2 / D), the last layer as in any head here.
Merge: the backbone stays as it is; the norms fold into the head's linear layers.
Where: in the head of a ViT, a Swin or a ConvNeXt, whose D features it reads. The head is the
  model's own (models.layers.Head), so any method can be trained with it.
Count: (k - 1)(D^2 + 3 D) hidden and (D + 1) classes in the last layer. ViT-B/16 with 100 classes:
  MLP-2 669,028, MLP-3 1,261,156, MLP-5 2,445,412, MLP-9 4,813,924.
Cost: of a linear probe.
Releases: as VPT's code, ReLU before the norm and dropout 0.1. It draws the last layer as the hidden
  ones (`head_init="vpt"` does, in a run's config) and hidden biases uniform in +-1/sqrt(D), here
  zero: no option.
"""

from __future__ import annotations

import dataclasses
import re

from peft_jax.method import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPHead(Method):
  """Trains the head alone, as Linear does, in a model created with head_layers and head_dropout.

  A run's config creates such a model; ValueError where its head has another number of layers.

  layers: linear layers of the head, 1 or more.
  dropout: rate after each hidden layer, in training, in [0, 1).
  """

  layers: int = 3
  dropout: float = 0.1

  @property
  def builds(self):
    return {"head_layers": self.layers, "head_dropout": self.dropout}

  def trains(self, table, paths):
    hidden = [path for path in table if re.fullmatch(r"head/hidden_\d+", path)]
    if self.layers != len(hidden) + 1:
      raise ValueError(f"MLPHead(layers={self.layers}): the model's head has {len(hidden) + 1} of "
                       f"them: create the model with head_layers={self.layers}.")
    return frozenset()
