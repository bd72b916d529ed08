"""Methods: what is trained, and how it acts. One file, one method, one collection.

Their docstrings have one form, from which docs/render.py writes the pages in docs/methods.
"""

import difflib

from peft_jax.methods.adapter import Adapter
from peft_jax.methods.adaptformer import AdaptFormer
from peft_jax.methods.dora import DoRA
from peft_jax.methods.gps import GPS
from peft_jax.methods.ia3 import IA3
from peft_jax.methods.lora import LoRA
from peft_jax.methods.mlp import MLPHead
from peft_jax.methods.san import SAN, Wire
from peft_jax.methods.scope import Bias, Full, Linear, Norm, Partial
from peft_jax.methods.spt import SPT
from peft_jax.methods.ssf import SSF
from peft_jax.methods.vpt import VPT

METHODS = {
  "lora": LoRA,
  "dora": DoRA,
  "ia3": IA3,
  "ssf": SSF,
  "san": SAN,
  "adapter": Adapter,
  "adaptformer": AdaptFormer,
  "vpt": VPT,
  "gps": GPS,
  "spt": SPT,
  "full": Full,
  "linear": Linear,
  "mlp": MLPHead,
  "partial": Partial,
  "bias": Bias,
  "norm": Norm,
}


def build(config):
  """The methods a config asks for, in its order: the first acts closest to the weights.

  config.methods: names; config.<name>: the options of each. Raises ValueError for an unknown
  name, listing near ones.
  """
  methods = []
  for name in config.methods:
    if name not in METHODS:
      near = difflib.get_close_matches(name, METHODS, n=1)
      hint = f"; did you mean {near[0]!r}?" if near else "."
      raise ValueError(f"There is no method {name!r}, only {', '.join(METHODS)}{hint}")
    methods.append(METHODS[name](**dict(config.get(name, {}))))
  return tuple(methods)


__all__ = [
  "AdaptFormer",
  "Adapter",
  "Bias",
  "DoRA",
  "Full",
  "GPS",
  "IA3",
  "Linear",
  "LoRA",
  "METHODS",
  "MLPHead",
  "Norm",
  "Partial",
  "SAN",
  "SPT",
  "SSF",
  "VPT",
  "Wire",
  "build",
]
