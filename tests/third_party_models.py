"""Two public Linen models, vendored unchanged in tests/third_party, for the engine's tests.

  setup_style    nanodl: a ViT written in `setup` style
  dense_general  transformer-in-transformer-flax: a compact TNT whose attention is
                 `nn.SelfAttention`, that is DenseGeneral query, key, value and out

nanodl was not written for the strictness of these tests: run it under `relaxed()`. The other
passes as it is.
"""

import contextlib
import functools
import hashlib
import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
FOLDER = pathlib.Path(__file__).parent / "third_party"


@functools.cache
def vendored(path):
  """The module at tests/third_party/`path`, after checking that it is the published text."""
  text = (FOLDER / path).read_bytes()
  if hashlib.sha256(text).hexdigest() not in (FOLDER / "README.md").read_text():
    raise AssertionError(f"{path} is not the file that tests/third_party/README.md names")
  name = f"third_party_{pathlib.Path(path).stem}"
  spec = importlib.util.spec_from_file_location(name, FOLDER / path)
  sys.modules[name] = module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@contextlib.contextmanager
def relaxed():
  """Lets shapes of unequal rank broadcast; nanodl adds [16, 24] positions to [2, 16, 24] tokens."""
  with jax.numpy_rank_promotion("allow"):
    yield


def setup_style():
  """(model, images, head): `model.apply(variables, images)` -> (logits [2, 5], tokens, attention).

  Dropout is 0 and off by default. The head is the module "output" at the top; "output" is also the
  name of each attention's last Dense, so the pattern must match whole paths.
  """
  model = vendored("nanodl/vit.py").ViT(
    patch_size=(8, 8),
    num_layers=2,
    hidden_dim=24,
    num_heads=3,
    feedforward_dim=24,  # nanodl embeds patches at this width: it must equal hidden_dim
    dropout=0.0,
    n_outputs=5,
  )
  return model, IMAGES, "output"


def dense_general():
  """(model, images, head): `model.apply(variables, images)` -> logits [2, 5]; it has no dropout.

  The head's kernel starts at zero: fill it before comparing outputs. The last block's inner half
  (`SelfAttention_0`, `MlpBlock_0`, `LayerNorm_0`, `LayerNorm_1`) never reaches the logits.
  """
  tnt = vendored("transformer_in_transformer_flax/tnt.py")
  config = tnt.TNTConfig(
    num_classes=5,
    depth=2,
    image_size=32,
    patch_size=4,  # the model works only where patch_size == transformed_patch_size**2
    transformed_patch_size=2,
    inner_dim=6,
    inner_heads=2,
    inner_dim_head=3,
    inner_r=2,
    outer_dim=24,
    outer_heads=3,
    outer_dim_head=8,
    outer_r=2,
  )
  return tnt.TransformerInTransformer(config), IMAGES, "Dense_0"
