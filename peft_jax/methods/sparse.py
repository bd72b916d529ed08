"""Entries of a kernel trained in place: how they are written, multiplied, and their gradient.

    W'[i, j] = value[r, c] where index[r, c] = i * fan_out + j, else W[i, j]

A kernel is the matrix [prod(fan_in), prod(fan_out)] here, whatever axes it has. Entries lie in
rows, and `how` says what a row is, so that less has to be gathered:

    "neuron"  an entry of each neuron: column c is of neuron c
    "input"   all entries of one input: row r is a row of the kernel
    "any"     any entries
    "kernel"  any entries, whose gradients are taken from that of the whole kernel

Of T tokens x and the gradient dy of the output the gradient of the values is otherwise formed from
those entries alone,

    dvalue[r, c] = sum_t x[t, i] dy[t, j]        2 T R C operations

where that of the whole kernel takes 2 T fan_in fan_out. A loop keeps what one run of entries reads,
or one row of an entry of each neuron, at a time.
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


def entry_gradients(x, dy, index, how):
  """float32 dvalue [R, C] of tokens x [T, fan_in] and the gradient dy [T, fan_out].

  index: flat places [R, C]; how: as above.
  """
  outputs, x = dy.shape[-1], x.astype(dy.dtype)
  total = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  if how == "kernel":
    return taken(total("ti,tj->ij", x, dy), index)
  if how == "input":
    return total("tr,tj->rj", x[:, index[:, 0] // outputs], dy)
  if _by_columns(index.shape, how):
    row = lambda places: total("tc,tc->c", x[:, places // outputs], dy)  # noqa: E731
    return jax.lax.map(row, index)
  # What an entry reads lies together: a gathered column is read token by token.
  x, dy = after(x, dy).T, dy.T
  run = lambda places: total("ct,ct->c", x[places // outputs], dy[places % outputs])  # noqa: E731
  found = jax.lax.map(run, _padded(index, RUN))
  return jnp.reshape(jnp.ravel(found)[: index.size], index.shape)


RUN = 512  # entries of a pass: as fast as one by one on a CPU, whose caches hold what they read


def runs(shape, how):
  """(passes, entries of each) of the loop over an `index` of that shape in `entry_gradients`."""
  return shape if _by_columns(shape, how) else (-(-math.prod(shape) // RUN), RUN)


def _by_columns(shape, how):
  return how == "neuron" and shape[0] <= 2  # so few do not pay for turning x and dy around


def _padded(entries, width):
  return jnp.pad(jnp.ravel(entries), (0, -entries.size % width)).reshape(-1, width)


def _rows(entries, outputs, how):
  """[R, fan_out]: rows as wide as the layer bound what is gathered at a time; padded by zeros."""
  return entries if how == "neuron" else _padded(entries, outputs)


# A layer y = x W' where W' is written, once for y and once for the gradient of x.


@jax.custom_vjp
def after(kernel, x):
  """The kernel, a copy that XLA does not make before it has x, whatever that is.

  Of what depends on parameters alone XLA makes all copies first, on a CPU, and keeps them to the
  end of the step: one of each kernel.
  """
  return _after(kernel, x)


def _wait(kernel, x):
  def never(kernel, x):  # a CPU's compiler drops barriers, and does not see that this is W
    x = x[(0,) * x.ndim]
    return jnp.where((x > 0) & (x < 0), jnp.zeros_like(kernel), kernel)

  def barrier(kernel, x):
    return jax.lax.optimization_barrier((kernel, x))[0]

  return jax.lax.platform_dependent(kernel, x, cpu=never, default=barrier)


_after = jax.custom_batching.custom_vmap(_wait)


@_after.def_vmap
def _after_one_of_many(size, batched, kernel, x):  # under a vmap over x alone W remains one
  x = x[0] if batched[1] else x
  return (jax.vmap(_wait, (0, None)) if batched[0] else _after)(kernel, x), batched[0]


after.defvjp(lambda kernel, x: (after(kernel, x), None), lambda _, dkernel: (dkernel, None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def tap(value, x, kernel, index, shape, dtype, how):
  """Zeros of an output's shape, with the gradients that x W' has to `value` and x.

  Added to a layer's output, computed of W' and x as constants, it trains the values without a
  gradient of the kernel. The backward pass writes W' again instead of keeping it. value, index:
  [R, C]; x: tokens [T, fan_in]; kernel: W, a constant.
  """
  return jnp.zeros(shape, dtype)


def _tap_forward(value, x, kernel, index, shape, dtype, how):
  return jnp.zeros(shape, dtype), (value, x, kernel, index)


def _tap_backward(shape, dtype, how, saved, dy):
  value, x, kernel, index = saved
  dy = jnp.reshape(dy, (x.shape[0], -1))
  kernel, index = after(kernel, dy), after(index, dy)
  kernel = written(kernel, value, index)
  kernel = jnp.reshape(kernel, (x.shape[1], -1)).astype(dy.dtype)
  dvalue = entry_gradients(x, dy, index, how)
  return dvalue.astype(value.dtype), (dy @ kernel.T).astype(x.dtype), None, None


tap.defvjp(_tap_forward, _tap_backward)


# The product with the chosen entries alone, where W' is not to be written.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def product(value, x, index, outputs, how):
  """x S [T, outputs] in x's dtype: S is `value` at the places `index` and zero elsewhere.

  value, index: [R, C]; x: tokens [T, fan_in]; how: "neuron", "input" or "any".
  """
  value = value.astype(x.dtype)
  if how == "input":
    return x[:, index[:, 0] // outputs] @ value

  def row(y, entries):
    places, values = entries
    terms = x[:, places // outputs] * values[None]
    return (y + terms if how == "neuron" else y.at[:, places % outputs].add(terms)), None

  rows = [_rows(array, outputs, how) for array in (index, value)]
  return jax.lax.scan(row, jnp.zeros((len(x), outputs), x.dtype), rows)[0]


def _product_forward(value, x, index, outputs, how):
  return product(value, x, index, outputs, how), (value, x, index)


def _product_backward(outputs, how, saved, dy):
  value, x, index = saved
  dvalue = entry_gradients(x, dy, index, how).astype(value.dtype)
  value, dx = value.astype(dy.dtype), jnp.zeros(x.shape, dy.dtype)
  if how == "input":
    return dvalue, dx.at[:, index[:, 0] // outputs].add(dy @ value.T), None

  def row(dx, entries):
    places, values = entries
    terms = (dy if how == "neuron" else dy[:, places % outputs]) * values[None]
    return dx.at[:, places // outputs].add(terms), None

  rows = [_rows(array, outputs, how) for array in (index, value)]
  return dvalue, jax.lax.scan(row, dx, rows)[0], None


product.defvjp(_product_forward, _product_backward)
