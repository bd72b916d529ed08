"""MLP-k: the backbone frozen, a head of k linear layers instead of one.

    x -> dropout(norm(relu(x W + b)))        k - 1 times, D wide;   logits = x W + b

A baseline of VPT, Jia et al. 2022, arXiv:2203.12119, and its code: ReLU before the norm, dropout
0.1, hidden kernels N(0, 2 / D). Numbers on ViT-B/16 with 100 classes, all in the head: MLP-2
669,028, MLP-3 1,261,156, MLP-5 2,445,412, MLP-9 4,813,924; in general (k - 1)(D^2 + 3 D) +
(D + 1) classes. Cost: of a linear probe. The head is the model's own (models.layers.Head), so
any method can be trained with it; merging folds the norms into its linear layers.
"""

from __future__ import annotations

import dataclasses
import re

from peft_jax.method import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPHead(Method):
  """Trains the head alone, as Linear does, in a model created with head_layers and head_dropout.

  A run's config creates it so; the last layer starts as any head here, with head_init="vpt" as in
  VPT's code, which draws it as the hidden ones. Its hidden biases are uniform in +-1/sqrt(D), here
  zero.

  layers: linear layers of the head, 1 or more.
  dropout: rate after each hidden layer, in training.
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
