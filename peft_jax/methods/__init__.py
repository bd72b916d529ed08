"""Methods: what is trained, and how it acts. One file, one method, one collection."""

import difflib

from peft_jax.methods.lora import LoRA
from peft_jax.methods.san import SAN, Wire
from peft_jax.methods.scope import Bias, Full, Linear, Norm
from peft_jax.methods.ssf import SSF
from peft_jax.methods.vpt import VPT

METHODS = {
  "lora": LoRA,
  "ssf": SSF,
  "san": SAN,
  "vpt": VPT,
  "full": Full,
  "linear": Linear,
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
  "METHODS",
  "SAN",
  "SSF",
  "VPT",
  "Bias",
  "Full",
  "Linear",
  "LoRA",
  "Norm",
  "Wire",
  "build",
]
