"""A model's input and parameters by shapes, for tracing without arrays."""

import jax
import jax.numpy as jnp


def images(model, batch=1):
  """The float32 [batch, S, S, 3] that a model of ours takes."""
  return jax.ShapeDtypeStruct((batch, model.image_size, model.image_size, 3), jnp.float32)


def parameters(model):
  """The parameter tree of a model of ours, with jax.ShapeDtypeStructs as leaves."""
  return jax.eval_shape(model.init, jax.random.key(0), images(model))["params"]


def batch(model, count):
  """A training batch of `count` images as they are read: uint8 pixels and int32 labels."""
  pixels = jax.ShapeDtypeStruct(images(model, count).shape, jnp.uint8)
  return {"image": pixels, "label": jax.ShapeDtypeStruct((count,), jnp.int32)}
