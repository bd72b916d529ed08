"""Published checkpoints as parameter trees of our models; no deep-learning framework needed."""

from peft_jax.weights.load import Base, fingerprint, load, save

__all__ = ["Base", "fingerprint", "load", "save"]
