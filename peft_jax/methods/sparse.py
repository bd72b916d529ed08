"""Entries of a kernel trained in place: how they are written, and their gradient.

    W'[i, j] = value[r, c] where index[r, c] = i * fan_out + j, else W[i, j]

A kernel is the matrix [prod(fan_in), prod(fan_out)] here, whatever axes it has. Entries lie in
rows: of a selection per neuron row r holds the r-th entry of each, so that column c is neuron c.

The gradient of the values is formed from those entries alone,

    dvalue[r, c] = sum_t x[t, i] dy[t, j]        T tokens: 2 T R C operations

where the gradient of the whole kernel takes 2 T fan_in fan_out. A loop over rows keeps one row of
gathered inputs, [T, fan_out], at a time.
"""

import functools
import math

import jax
import jax.numpy as jnp


def places(inputs, outputs):
  """int32 [R, fan_out]: flat places of the entries (inputs[r, j], j), j below `outputs`."""
  return inputs * outputs + jnp.arange(outputs, dtype=jnp.int32)[None]


def written(kernel, value, index):
  """The kernel with `value` at the flat places `index`; same shape and dtype."""
  flat = jnp.reshape(kernel, -1)
  flat = flat.at[jnp.reshape(index, -1)].set(jnp.reshape(value, -1).astype(flat.dtype))
  return jnp.reshape(flat, kernel.shape)


def taken(kernel, index):
  """What `written` replaces: the kernel's own values, in the shape of `index`."""
  return jnp.reshape(kernel, -1)[index]


def entry_gradients(x, dy, index, per_neuron):
  """float32 dvalue [R, C] of tokens x [T, fan_in] and the gradient dy [T, fan_out].

  index: flat places [R, C]; per_neuron: column c of `index` is neuron c, so dy needs no gathering.
  """
  outputs, shape = dy.shape[-1], index.shape
  if not per_neuron:  # rows as wide as the layer bound what is gathered at a time
    index = jnp.pad(jnp.reshape(index, -1), (0, -index.size % outputs)).reshape(-1, outputs)

  def row(places):
    inputs = x[:, places // outputs]
    gradients = dy if per_neuron else dy[:, places % outputs]
    return jnp.einsum("tc,tc->c", inputs, gradients, preferred_element_type=jnp.float32)

  return jnp.reshape(jnp.reshape(jax.lax.map(row, index), -1)[: math.prod(shape)], shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def tap(value, index, x, shape, dtype, per_neuron):
  """Zeros of an output's shape, whose gradient with respect to `value` is `entry_gradients`.

  Added to a layer's output it trains the values although they stand in a kernel that is held
  constant, whatever computes that output. value, index: [R, C]; x: tokens [T, fan_in].
  """
  return jnp.zeros(shape, dtype)


def _forward(value, index, x, shape, dtype, per_neuron):
  return jnp.zeros(shape, dtype), (index, x, value)


def _backward(shape, dtype, per_neuron, saved, dy):
  index, x, value = saved
  dy = jnp.reshape(dy, (x.shape[0], -1))
  return entry_gradients(x, dy, index, per_neuron).astype(value.dtype), None, None


tap.defvjp(_forward, _backward)
