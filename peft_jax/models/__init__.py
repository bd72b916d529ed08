"""Backbones: plain Linen modules that know nothing of tuning."""

from peft_jax.models.convnext import ConvNeXt
from peft_jax.models.presets import PRESETS, Preset, create, preset
from peft_jax.models.shapes import batch, images, parameters
from peft_jax.models.stack import stack_blocks, unstack_blocks
from peft_jax.models.swin import Swin
from peft_jax.models.vit import ViT

__all__ = [
  "PRESETS",
  "ConvNeXt",
  "Preset",
  "Swin",
  "ViT",
  "batch",
  "create",
  "images",
  "parameters",
  "preset",
  "stack_blocks",
  "unstack_blocks",
]
