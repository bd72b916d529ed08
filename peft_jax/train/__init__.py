"""Training: from a config to a folder with metrics, an adapter file and a result."""

from peft_jax.train.config import default, parse_argument
from peft_jax.train.loop import NotFiniteError, run

__all__ = ["NotFiniteError", "default", "parse_argument", "run"]
