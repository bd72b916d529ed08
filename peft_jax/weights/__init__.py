"""Published checkpoints as parameter trees of our models; no deep-learning framework needed."""

from peft_jax.weights.load import Base, fingerprint, load, save
from peft_jax.weights.reader import read

__all__ = ["Base", "fingerprint", "load", "read", "save"]
