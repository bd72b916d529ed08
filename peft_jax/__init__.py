"""Parameter-efficient fine-tuning of vision backbones in JAX/Flax.

    model = models.create("vit_b16", num_classes=10)
    params, base = weights.load("vit_b16.npz", model, key=jax.random.key(0))
    tuned = Tuned(model, (SAN(),), sites(model, images))      # from peft_jax.sites import sites
    variables = {"params": params, **tuned.init(jax.random.key(1), params)}
    logits = tuned.apply(variables, images)
    merged = tuned.merge(variables)                           # plain weights

The names below are found where they live when first used: importing one part of the package,
`peft_jax.models` for example, imports no other.
"""

import importlib

_HOMES = {
  "AdaptFormer": "peft_jax.methods",
  "Adapter": "peft_jax.methods",
  "Bias": "peft_jax.methods",
  "DoRA": "peft_jax.methods",
  "Full": "peft_jax.methods",
  "GPS": "peft_jax.methods",
  "IA3": "peft_jax.methods",
  "Linear": "peft_jax.methods",
  "LoRA": "peft_jax.methods",
  "Loaded": "peft_jax.loaded",
  "MLPHead": "peft_jax.methods",
  "Method": "peft_jax.method",
  "NoSiteError": "peft_jax.sites",
  "Norm": "peft_jax.methods",
  "Partial": "peft_jax.methods",
  "SAN": "peft_jax.methods",
  "SPT": "peft_jax.methods",
  "SSF": "peft_jax.methods",
  "Tuned": "peft_jax.tuned",
  "VPT": "peft_jax.methods",
  "join": "peft_jax.tuned",
  "load": "peft_jax.adapter_file",
  "save": "peft_jax.adapter_file",
}
_PARTS = (
  "account",
  "adapter_file",
  "data",
  "explain",
  "methods",
  "models",
  "peft_file",
  "safetensors",
  "sites",
  "train",
  "weights",
)

__all__ = sorted([*_HOMES, *_PARTS])


def __getattr__(name):
  if name in _HOMES:
    return getattr(importlib.import_module(_HOMES[name]), name)
  if name in _PARTS:
    return importlib.import_module(f"peft_jax.{name}")
  raise AttributeError(f"module 'peft_jax' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
  return __all__
