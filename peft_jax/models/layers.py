"""What the backbones share: types and epsilons, stochastic depth, attention, checks of options."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.tree import flat, nest

DTYPES = ("float32", "bfloat16", "float64")

GELUS = {
  "exact": lambda x: jax.nn.gelu(x, approximate=False),
  "tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "quick": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}

# Standard deviation 0.02 after the cut at two: flax's argument is the one before it.
kernel_init = nn.initializers.truncated_normal(0.02 / 0.87962566)
# Of the hidden layers of a head, and the epsilon of its norms.
hidden_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
NORM_EPS = 1e-5
# How the kernel and the bias of a head's last layer start: "small", or as in VPT's code, where the
# bias is that of a class with the probability 1 %.
HEAD_INITS = {
  "small": (kernel_init, nn.initializers.zeros),
  "vpt": (hidden_init, nn.initializers.constant(-math.log(99))),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numerics:
  """What all layers of one model share; the fields are those of the models."""

  eps: float
  gelu: str = "exact"
  dtype: str = "float32"
  layer_scale: float | None = None

  @property
  def wide(self):
    """Type of what bfloat16 is too coarse for: norms, softmax, means, head."""
    return "float64" if self.dtype == "float64" else "float32"

  def norm(self, x, name):
    """The layer norm of x, or of each array of a tuple x by the same parameters."""
    # The one-pass variance flax takes by default loses 2e-3 when tokens share an offset of 100.
    norm = nn.LayerNorm(self.eps, dtype=self.wide, use_fast_variance=False, name=name)
    return jax.tree.map(lambda x: norm(x.astype(self.wide)).astype(self.dtype), x)

  def dense(self, width, name, use_bias=True):
    return nn.Dense(width, use_bias, self.dtype, kernel_init=kernel_init, name=name)

  def patches(self, width, side, name, **options):
    """side x side pixels to one token; rows and columns that fill no patch are dropped."""
    return nn.Conv(width, (side, side), strides=(side, side), padding="VALID", dtype=self.dtype,
                   name=name, **options)

  def act(self, x):
    return GELUS[self.gelu](x)

  def scaled(self, module, x, name):
    """x * the parameter `name` [C] of `module`, for x [..., C]; x for models without it."""
    if self.layer_scale is None:
      return x
    start = nn.initializers.constant(self.layer_scale)
    scale = module.param(name, start, x.shape[-1:], jnp.float32).astype(x.dtype)
    return x * scale.reshape((1,) * (x.ndim - 1) + scale.shape)

  def head(self, model, x, train, name="head", use_bias=True):
    """Logits of `wide` type for x [B, D]; x itself when the model has no classes."""
    classes, layers = model.num_classes, model.head_layers
    if not classes:
      return x
    x = x.astype(self.wide)
    if layers == 1:
      return nn.Dense(classes, use_bias, self.wide, kernel_init=kernel_init, name=name)(x)
    if train:
      check_draws(model, "head_dropout")
    return Head(classes, layers, model.head_dropout, self.wide, name=name)(x, train)


class Head(nn.Module):
  """Logits [B, classes] of x [B, D]: out(x) after `layers` - 1 times

      x = dropout(norm(relu(hidden(x))))       hidden_0, norm_0, hidden_1, ...: D wide

  With train=True a norm takes mean and variance (biased) over the batch, and moves those in the
  collection "batch_stats" a tenth of the way to them; else it takes these. Under pmap a batch is a
  device's own. Parameters without the norms are a head that `fold_norms` made.
  """

  classes: int
  layers: int
  dropout: float
  dtype: str

  @nn.compact
  def __call__(self, x, train=False):
    if train and x.shape[0] < 2:
      raise ValueError(f"head_layers={self.layers} needs two images or more on each device in "
                       "training: its norms take the variance over them.")
    for i in range(self.layers - 1):
      hidden = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=hidden_init, name=f"hidden_{i}")
      x = nn.relu(hidden(x))
      if self.is_initializing() or self.has_variable("params", f"norm_{i}"):
        norm = nn.BatchNorm(not train, momentum=0.9, epsilon=NORM_EPS, use_fast_variance=False,
                            name=f"norm_{i}")
        x = norm(x.astype("float32")).astype(self.dtype)
      if train and self.dropout:
        x = nn.Dropout(self.dropout, deterministic=False, name=f"dropout_{i}")(x)
    return nn.Dense(self.classes, dtype=self.dtype, kernel_init=kernel_init, name="out")(x)


def fold_norms(params, stats):
  """Parameters whose heads need no `stats` (the "batch_stats" they had) and no norms.

  In evaluation a norm is h -> h a + c with a = scale / sqrt(var + eps), c = bias - mean a, and the
  linear layer after it makes h (a W) + (c W + b) of it.
  """
  params, stats = flat(params), flat(stats)
  for path in [path for path in stats if path.endswith("/mean")]:
    norm = path.removesuffix("/mean")
    head, _, i = norm.rpartition("/norm_")
    after = f"{head}/hidden_{int(i) + 1}"
    after = after if f"{after}/kernel" in params else f"{head}/out"
    a = params.pop(f"{norm}/scale") / jnp.sqrt(stats[f"{norm}/var"] + NORM_EPS)
    c = params.pop(f"{norm}/bias") - stats[path] * a
    kernel = params[f"{after}/kernel"]
    params[f"{after}/bias"] = c @ kernel + params[f"{after}/bias"]
    params[f"{after}/kernel"] = a[:, None] * kernel
  return nest(params)


class Mlp(nn.Module):
  """The residual branch ls * fc2(gelu(fc1(norm(x)))), [..., D] -> [..., D].

  hidden: width between fc1 and fc2.
  """

  numerics: Numerics
  hidden: int

  @nn.compact
  def __call__(self, x):
    num, d = self.numerics, x.shape[-1]
    y = num.norm(x.reshape(-1, d), "norm")
    y = num.act(num.dense(self.hidden, "fc1")(y))
    return num.scaled(self, num.dense(d, "fc2")(y), "ls").reshape(x.shape)


def attend(q, k, v, wide, bias=None):
  """softmax(q k^T / sqrt(d) + bias) v for q [B, N, H, d], k and v [B, M, H, d], as [B, N, H, d].

  wide: type of the softmax.
  bias: [G, H, N, M] where G divides B: the g-th of every G consecutive sequences gets the g-th.
  """
  q, k, v = (jnp.transpose(a, (0, 2, 1, 3)) for a in (q, k, v))  # [B, H, N, d]
  scores = jnp.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=wide)
  if bias is not None:
    scores = (scores.reshape(-1, *bias.shape) + bias[None]).reshape(scores.shape)
  y = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores).astype(v.dtype), v)
  return jnp.transpose(y, (0, 2, 1, 3))


def rows(x):
  """x [..., C] as [T, C], or each array of a tuple; None stays None."""
  return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), x)


def beside(x, tokens):
  """x [G, N, ...] and tokens [B, p, ...] as [G, N + p, ...].

  B divides G: each consecutive G / B sequences, such as the windows of one sample, get the same
  tokens.
  """
  return jnp.concatenate([x, jnp.repeat(tokens, x.shape[0] // tokens.shape[0], axis=0)], axis=1)


# --- stochastic depth ------------------------------------------------------------------------


def drop_rates(module, depth, train):
  """Of each block: drop_path * i / (depth - 1), a list of numbers; of Nones where nothing drops."""
  if not (train and module.drop_path):
    return [None] * depth
  check_draws(module, "drop_path")
  return list(np.linspace(0.0, module.drop_path, depth).astype(np.float32))


def check_draws(module, field):
  """Raises ValueError where the rate `field` of a module in training has nothing to draw from."""
  if getattr(module, field) and not module.has_rng("dropout"):
    raise ValueError(f"{field}={getattr(module, field)} with train=True draws from the rng stream "
                     "'dropout', which was not given: pass rngs={'dropout': key}.")


def drop(module, y, rate):
  """Zero for a share `rate` of the samples, y / (1 - rate) for the others; None drops nothing.

  y: an array [B, ...] or a tuple of them, in which the same samples are dropped.
  """
  if rate is None:
    return y
  samples = jax.tree.leaves(y)[0].shape[0]
  kept = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, (samples,))

  def dropped(y):
    mine = kept.reshape((samples,) + (1,) * (y.ndim - 1))
    return jnp.where(mine, y / jnp.asarray(1.0 - rate, y.dtype), jnp.zeros((), y.dtype))

  return jax.tree.map(dropped, y)


# --- checks ----------------------------------------------------------------------------------


def check(model, counts, **choices):
  """Raises ValueError for values that no backbone takes.

  counts: names of fields that hold a whole number above 0, or a tuple of such numbers; beside
    image_size.
  choices: field=values it may have; beside dtype and gelu.
  """
  for field, known in {"dtype": DTYPES, "gelu": tuple(GELUS), **choices}.items():
    value = getattr(model, field)
    if value not in known:
      raise ValueError(f"{field}={value!r} is none of {', '.join(known)}.")
  for field in ("image_size", *counts):
    value = getattr(model, field)
    if not all(is_whole(v, 1) for v in (value if isinstance(value, tuple) and value else (value,))):
      raise ValueError(f"{field}={value!r} must be a whole number above 0"
                       f"{' for every stage' if isinstance(value, tuple) else ''}.")
  if not is_whole(model.num_classes, 0):
    raise ValueError(f"num_classes={model.num_classes!r} must be a whole number, 0 or more.")
  if not is_whole(model.head_layers, 1):
    raise ValueError(f"head_layers={model.head_layers!r} must be a whole number above 0.")
  for field in ("drop_path", "head_dropout"):
    if not 0.0 <= getattr(model, field) < 1.0:
      raise ValueError(f"{field}={getattr(model, field)} must lie in [0, 1).")
  if model.dtype == "float64" and not jax.config.jax_enable_x64:
    raise ValueError("dtype='float64' needs JAX_ENABLE_X64=1 in the environment.")


def check_stages(model, *fields):
  """Raises ValueError unless the tuples `fields` have one entry per stage; refuses scans."""
  lengths = {field: len(getattr(model, field)) for field in fields
             if isinstance(getattr(model, field), tuple)}
  if set(lengths) != set(fields) or len(set(lengths.values())) != 1:
    shown = ", ".join(f"{field}={getattr(model, field)!r}" for field in fields)
    raise ValueError(f"{shown} must be tuples with one entry per stage.")
  if "scan" in str(model.loop):
    raise ValueError(f"loop={model.loop!r} stacks equal blocks, and the stages of a "
                     f"{type(model).__name__} differ in shape: take loop='remat'.")


def is_whole(value, low):
  return isinstance(value, int) and not isinstance(value, bool) and value >= low


def check_images(model, images, sizes=""):
  """Raises ValueError unless `images` is a floating [B, S, S, 3] with S = model.image_size.

  sizes: what the sentence adds about sizes the model can be made for.
  """
  s = model.image_size
  if jnp.ndim(images) != 4 or images.shape[-1] != 3:
    raise ValueError(f"images must be [batch, {s}, {s}, 3], not {tuple(jnp.shape(images))}.")
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f"images must be normalised floating point numbers, not {images.dtype}: "
                     "pass them through data.normalize.")
  if images.shape[1:3] != (s, s):
    raise ValueError(
      f"images of {images.shape[1]} x {images.shape[2]} pixels do not fit a model made for {s} x "
      f"{s}: resize them, or create the model with another image_size{sizes}.")
