"""GPS: of every neuron, the K input connections that a task's gradient names, trained in place.

    y = x W' + b        W'[i, j] = value[k, j] where i = index[k, j], else W[i, j]

Source: Zhang et al. 2024, "Gradient-based parameter selection for efficient fine-tuning", CVPR,
  arXiv:2312.10136, sections 3.1 to 3.3.
Start: the chosen entries are the kernel's own, so the tuned model starts equal to the backbone.
Merge: the values are written into the kernels.
Where: every linear layer and convolution of a ViT, a Swin or a ConvNeXt; a neuron is an output
  channel. Which entries they are is chosen before training, from the task's images: train.py does
  so and keeps the choice in selection.safetensors; elsewhere `peft_jax.selection.places.choose`.
Count: k a neuron, and the biases. ViT-B/16 at k = 1, 2, 3: 167,424, 251,136, 334,848; each k adds
  83,712 (Swin-B and ConvNeXt-B 110,208).
Cost: in a step 2 T k fan_out operations a layer, where full tuning takes 2 T fan_in fan_out;
  convolutions take the gradient of the whole kernel. None once merged. The choice is one epoch of
  gradients of two views of each image.
Releases: the code trains all biases of linear layers and convolutions, a Swin's tables of relative
  positions and a ConvNeXt's layer scale, which the paper does not mention, and freezes norms, class
  token and tables of positions: the defaults. It scores in half precision and with drop path on;
  here in float32 without. It applies its mask only under --amp and trains everything without: here
  it always holds. "Neuron Random" is `score` "random"; the code shuffles the neurons of GPS's own
  choice instead: no option yet.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp

from peft_jax.methods import patterns, sparse
from peft_jax.methods.entries import Entries
from peft_jax.methods.scope import norm_paths
from peft_jax.selection import top

LEVELS = ("neuron", "layer", "net")
SCORES = ("contrast", "cross_entropy", "magnitude", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPS(Entries):
  """Chosen entries of the kernels of linear layers and convolutions, and all their biases.

  Variables at a site whose kernel has shape fan_in + fan_out:
    value: (k,) + fan_out   trained; per layer or net (1, n), n entries of this kernel
    index: the same shape   int32, frozen: flat places in the kernel

  NeuroAda (arXiv:2510.18940) is GPS(score="magnitude", delta=True, biases=False, rel_pos=False,
  layer_scale=False) on a backbone that its paper does not have: no images, k * fan_out a layer.

  "magnitude" and "random" per neuron need no images and are chosen by `init`; for other scores
  `init` leaves NaN, until `peft_jax.selection.places.choose` has filled it. Below it other methods
  are folded into the weights; above it they cost what they do alone.

  k: inputs of each neuron, 1 or more; a layer with fewer has all of them trained. Per layer and net
    k times the number of neurons of the layer, or of all, are chosen.
  level: "neuron"; "layer", a layer's largest (q, k and v are one); or "net", the largest of all.
  score: "contrast", |sum of gradients| of the supervised contrastive loss of two views;
    "cross_entropy", that of the cross-entropy of a random head; "magnitude", |W|; or "random".
  temperature: of the contrastive loss, above 0.
  biases: whether the biases of linear layers and convolutions are trained.
  rel_pos: whether a Swin's tables of relative positions are.
  layer_scale: whether the layer scale of a ViT or a ConvNeXt is.
  norms: whether scale and bias of all norms are.
  form: "entries" forms the gradient of the chosen entries alone, "kernel" that of the whole kernel
    and takes them from it, "auto" the former in linear layers where k <= inputs / 64; "mask" trains
    the kernels themselves and masks their updates: the same training, at the cost of full tuning.
    These write into a copy of the kernel; "product" adds x times what the entries changed by, but
    in convolutions, so that under a vmap over runs all share their kernels.
  delta: whether `value` is what is added to the entry, starting at zero, and not the entry: weight
    decay then pulls to the backbone's entry, not to zero.
  chosen: of a choice per layer or net, filled by it: "path=n" for a kernel with n > 0 entries.
  """

  chooses: ClassVar[bool] = True

  collection: str = "gps"
  k: int = 1
  level: str = "neuron"
  score: str = "contrast"
  temperature: float = 0.07
  biases: bool = True
  rel_pos: bool = True
  layer_scale: bool = True
  norms: bool = False
  chosen: tuple[str, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    if self.k < 1:
      raise ValueError(f"GPS: k={self.k}; it must be at least 1.")
    if not self.temperature > 0:
      raise ValueError(f"GPS: temperature={self.temperature}; it must be positive.")
    for name, values in {"level": LEVELS, "score": SCORES}.items():
      if getattr(self, name) not in values:
        raise ValueError(f"GPS: {name}={getattr(self, name)!r}; it must be one of {values}.")
    patterns.check("GPS", "chosen", self.chosen, int)

  def bind(self, table, chosen):
    if self.level != "neuron" and not self.chosen:
      raise ValueError(
        f"GPS: what level={self.level!r} trains depends on the weights and the task: choose it "
        "first (peft_jax.selection.places.choose; train.py does so)."
      )
    patterns.check_used("GPS", "chosen", self.chosen, chosen)
    return self

  def entries(self, site):
    """The shape of `value` at a site; None where nothing is chosen."""
    if self.level == "neuron":
      return (min(self.k, math.prod(site.fan_in)), *site.fan_out)
    n = int(patterns.at(site.path, self.chosen, 0))
    return (1, n) if n else None

  def init(self, site, key, params):
    shape = self.entries(site)
    if shape is None:
      return {}
    inputs, outputs = math.prod(site.fan_in), math.prod(site.fan_out)
    kernel = params.get("kernel", jnp.zeros((*site.fan_in, *site.fan_out)))
    if self.level != "neuron" or self.score not in ("magnitude", "random"):
      made = self.variables(kernel, jnp.zeros(shape, jnp.int32))
      return {**made, "value": jnp.full(shape, jnp.nan, kernel.dtype)} if "value" in made else made
    if self.score == "magnitude":
      places = top.top_per_neuron(jnp.reshape(kernel, (inputs, outputs)), self.k)
    else:
      places = top.random_per_neuron(key, inputs, outputs, self.k)
    return self.variables(kernel, jnp.reshape(sparse.places(places, outputs), shape))

  def rows(self, site):
    return {"neuron": "neuron", "shared": "input"}.get(self.level, "any")

  def trains(self, table, paths):
    norms = norm_paths(table)
    roles = {"bias": self.biases, "rel_pos": self.rel_pos}  # by the name of a parameter
    roles |= dict.fromkeys(("gamma", "ls"), self.layer_scale)
    wanted = {path for path in paths - norms if roles.get(path.rpartition("/")[2])}
    return frozenset(wanted | (norms & paths if self.norms else set()))
