"""Parameter-efficient fine-tuning of vision backbones in JAX/Flax."""
