"""Every backbone against timm itself, all parameters drawn anew; skipped where timm is absent.

    pip install torch timm; python -m pytest tests/models/timm_live_test.py

Run as a script it prints the numbers of GOLDEN in golden_test.py.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import golden  # noqa: E402
import timm_names  # noqa: E402

sys.path.pop(0)
pytestmark = pytest.mark.slow

SWIN = ({"embed_dim": 24, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 4, 8)},
        {"width": 24, "depths": (2, 2, 2, 1), "heads": (1, 2, 4, 8)})
CONVNEXT = ({"dims": (16, 24, 32, 40), "depths": (1, 2, 1, 1)},
            {"widths": (16, 24, 32, 40), "depths": (1, 2, 1, 1)})
VIT = ({"embed_dim": 48, "depth": 3, "num_heads": 3}, {"width": 48, "depth": 3, "heads": 3})
WHOLE = ({}, {})

# (name here and in timm, pixels, (timm's overrides, ours)): some whole, some with fewer layers
CASES = [
  ("vit_tiny_patch16_224", 32, WHOLE),
  ("vit_base_patch16_224", 48, VIT),
  ("deit_tiny_distilled_patch16_224", 48, VIT),
  ("deit_base_distilled_patch16_224", 32, VIT),
  ("vit_base_patch16_clip_224", 48, VIT),
  ("vit_base_patch32_clip_quickgelu_224", 64, VIT),
  ("swin_tiny_patch4_window7_224", 56, WHOLE),
  ("swin_tiny_patch4_window7_224", 200, SWIN),
  ("swin_small_patch4_window7_224", 224, SWIN),
  ("swin_base_patch4_window12_384", 384, SWIN),
  ("swin_large_patch4_window12_384", 150, SWIN),
  ("convnext_atto", 150, WHOLE),
  ("convnext_femto", 32, CONVNEXT),
  ("convnext_nano", 47, CONVNEXT),
  ("convnext_base", 150, CONVNEXT),
  ("convnextv2_atto", 63, WHOLE),
  ("convnextv2_huge", 70, CONVNEXT),
]


def timm_logits(name, size, overrides, x, double=True):
  """(state dict in NumPy, logits) of a timm model, every parameter by timm_names.fill."""
  timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
  takes_size = {} if name.startswith("convnext") else {"img_size": size}
  model = timm.create_model(name, pretrained=False, num_classes=5, **takes_size, **overrides).eval()
  with torch.no_grad():
    model = model.double() if double else model
    state = timm_names.fill({k: tuple(p.shape) for k, p in model.named_parameters()})
    for k, p in model.named_parameters():
      p.copy_(torch.tensor(state[k]))
    y = model(torch.tensor(np.transpose(x, (0, 3, 1, 2)), dtype=next(model.parameters()).dtype))
  return state, y.numpy()


def compared(name, size, overrides, dtype):
  theirs, ours = overrides
  x = timm_names.images(size)
  state, want = timm_logits(name, size, theirs, x, dtype == "float64")
  params = jax.tree.map(lambda w: jnp.asarray(w, dtype), timm_names.converted(state))
  model = models.create(name, num_classes=5, image_size=size, dtype=dtype, **ours)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(x, dtype))["params"]
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
  assert np.ptp(want) > 0.3
  return jax.jit(model.apply)({"params": params}, jnp.asarray(x, dtype)), want


@pytest.mark.parametrize("name, size, overrides", CASES)
def test_float64_agrees_to_ten_digits(name, size, overrides):
  # Flax's own LayerNorm promotes float64 with float32: no strictness inside.
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    got, want = compared(name, size, overrides, "float64")
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name, size, overrides", CASES)
def test_float32_agrees_to_five_digits(name, size, overrides):
  got, want = compared(name, size, overrides, "float32")
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))



if __name__ == "__main__":
  vit = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
  swin = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4)}
  convnext = {"dims": (8, 12, 16, 24), "depths": (1, 1, 2, 1)}
  for case, name, overrides in (
    ("vit", "vit_tiny_patch16_224", vit),
    ("vit mean-pool", "vit_tiny_patch16_224", vit | {"global_pool": "avg"}),
    ("dinov2", "vit_tiny_patch16_224",
     vit | {"init_values": 1e-5, "reg_tokens": 2, "no_embed_class": True}),
    ("deit distilled", "deit_tiny_distilled_patch16_224", vit),
    ("clip", "vit_base_patch16_clip_quickgelu_224", vit),
    ("swin", "swin_tiny_patch4_window7_224", swin),
    ("swin odd", "swin_tiny_patch4_window7_224",
     swin | {"depths": (2, 2, 2), "num_heads": (2, 4, 4)}),
    ("swin window 12", "swin_tiny_patch4_window7_224", swin | {"window_size": 12}),
    ("convnext", "convnext_tiny", convnext),
    ("convnext odd", "convnext_tiny", convnext),
    ("convnextv2", "convnextv2_tiny", convnext),
  ):
    size = golden.create(case).image_size
    state, y = timm_logits(name, size, overrides, timm_names.images(size))
    print(case, sum(w.size for w in state.values()), np.round(y, 10).tolist())
