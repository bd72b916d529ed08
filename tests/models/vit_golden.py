"""Run as a script under JAX_ENABLE_X64=1: prints the logits of the golden cases as JSON.

The parameters are drawn for timm's names in timm's layouts by the rule in `fill`, so that the same
numbers can be had from timm itself.
"""

import json

import jax.numpy as jnp
import numpy as np

from peft_jax import models
from peft_jax.tree import nest
from peft_jax.weights import names

D, DEPTH, PATCH, SIZE, CLASSES = 24, 2, 8, 32, 5

CASES = {
  "cls": {},
  "avg": {"pool": "avg"},
  "dinov2": {"layer_scale": 1e-5, "registers": 2, "no_embed_class": True},
}


def timm_shapes(pool="cls", layer_scale=None, registers=0, no_embed_class=False):
  tokens = (SIZE // PATCH) ** 2 + (0 if no_embed_class else 1)
  out = {
    "cls_token": (1, 1, D), "pos_embed": (1, tokens, D),
    "patch_embed.proj.weight": (D, 3, PATCH, PATCH), "patch_embed.proj.bias": (D,),
    "head.weight": (CLASSES, D), "head.bias": (CLASSES,),
  }
  if registers:
    out["reg_token"] = (1, registers, D)
  norm = "norm" if pool == "cls" else "fc_norm"
  linear = {"attn.qkv": (3 * D, D), "attn.proj": (D, D), "mlp.fc1": (4 * D, D),
            "mlp.fc2": (D, 4 * D)}
  for i in range(DEPTH):
    for name, (rows, columns) in linear.items():
      out[f"blocks.{i}.{name}.weight"], out[f"blocks.{i}.{name}.bias"] = (rows, columns), (rows,)
    if layer_scale is not None:
      out[f"blocks.{i}.ls1.gamma"] = out[f"blocks.{i}.ls2.gamma"] = (D,)
  for name in [norm, *(f"blocks.{i}.norm{j}" for i in range(DEPTH) for j in (1, 2))]:
    out[f"{name}.weight"] = out[f"{name}.bias"] = (D,)
  return out


def fill(shapes):
  """The j-th name in sorted order gets RandomState(j)'s normal draws, scaled by its kind."""
  out = {}
  for j, name in enumerate(sorted(shapes)):
    shape = shapes[name]
    r = np.random.RandomState(j).standard_normal(int(np.prod(shape))).reshape(shape)
    if len(shape) == 1:
      out[name] = 0.25 * r + (1 if name.endswith(("weight", "gamma")) else 0)
    elif name.endswith(("token", "pos_embed")):
      out[name] = 0.5 * r
    else:
      out[name] = r / np.sqrt(np.prod(shape[1:]))
  return out


def logits(options, loop):
  state = fill(timm_shapes(**options))
  params = nest(names.timm(state))
  if "scan" in loop:
    params = models.stack_blocks(params)
  model = models.create("vit_test", num_classes=CLASSES, dtype="float64", loop=loop, **options)
  images = jnp.asarray(np.random.RandomState(1000).standard_normal((2, SIZE, SIZE, 3)))
  y = model.apply({"params": params}, images)
  assert y.dtype == jnp.float64
  return {"parameters": sum(v.size for v in state.values()), "logits": np.asarray(y).tolist()}


if __name__ == "__main__":
  print(json.dumps({f"{case} {loop}": logits(options, loop) for case, options in CASES.items()
                    for loop in ("python", "scan_remat")}))
