"""Vision transformer: patches to tokens, pre-norm blocks, class token or mean, linear head.

    x = [cls, registers, patches W + b] + table
    x = x + ls * attn(norm(x));  x = x + ls * mlp(norm(x))           depth times
    logits = norm(x)[cls] W + b                                      pool = "cls"
    logits = fc_norm(mean of the patches of x) W + b                 pool = "avg"

Dosovitskiy et al. 2021, arXiv:2010.11929. The options cover the ViTs of the AugReg, MAE, MoCo v3,
DeiT-3 and DINOv2 checkpoints, with and without registers. Parameters are float32.

Parameter tree (`blocks` alone, stacked on axis 0, under the scan loops):

    patch_embed/{kernel,bias}  cls_token  reg_tokens  pos_embed
    encoder/blocks_0/attn/{norm,q,k,v,proj,ls}  encoder/blocks_0/mlp/{norm,fc1,fc2,ls}
    norm (fc_norm for pool="avg")  head

`attn` and `mlp` are residual branches: they take the stream [B, N, D] and return what is added to
it. Inside, tokens are flattened to [B * N, D]: on CPU the three-dimensional contractions cost 15 %
more.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

LOOPS = ("python", "remat", "scan", "scan_remat")
DTYPES = ("float32", "bfloat16", "float64")
ATTENTIONS = ("xla", "cudnn")
POOLS = ("cls", "avg")

GELUS = {
  "exact": lambda x: jax.nn.gelu(x, approximate=False),
  "tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "quick": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}

# Standard deviation 0.02 after the cut at two: flax's argument is the one before it.
kernel_init = nn.initializers.truncated_normal(0.02 / 0.87962566)


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """What all blocks of one ViT share; the fields are those of `ViT`."""

  width: int
  heads: int
  mlp_width: int
  layer_scale: float | None
  gelu: str
  eps: float
  dtype: str
  attention: str

  @property
  def wide(self):
    """Type of what bfloat16 is too coarse for: norms, softmax, head."""
    return "float64" if self.dtype == "float64" else "float32"

  def norm(self, x, name):
    # The one-pass variance flax takes by default loses 2e-3 when tokens share an offset of 100.
    norm = nn.LayerNorm(self.eps, dtype=self.wide, use_fast_variance=False, name=name)
    return norm(x.astype(self.wide)).astype(self.dtype)

  def dense(self, width, name):
    return nn.Dense(width, dtype=self.dtype, kernel_init=kernel_init, name=name)


def scaled(module, spec, x):
  """x * ls, the branch's layer scale, for x [M, D]; x where the model has none."""
  if spec.layer_scale is None:
    return x
  ls = module.param("ls", nn.initializers.constant(spec.layer_scale), (spec.width,), jnp.float32)
  return x * ls.astype(x.dtype)[None]


def attend(q, k, v, how, wide):
  """softmax(q k^T / sqrt(d)) v for q, k, v [B, N, H, d]; the softmax has type `wide`."""
  if how == "cudnn":
    if jax.default_backend() != "gpu":
      raise ValueError("attention='cudnn' runs on NVIDIA GPUs only, and the default backend is "
                       f"{jax.default_backend()}: take attention='xla'.")
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
  q, k, v = (jnp.transpose(a, (0, 2, 1, 3)) for a in (q, k, v))  # [B, H, N, d]
  scores = jnp.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=wide)
  y = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores).astype(v.dtype), v)
  return jnp.transpose(y, (0, 2, 1, 3))


class Attention(nn.Module):
  """The residual branch ls * proj(attention(norm(x))), [B, N, D] -> [B, N, D]."""

  spec: BlockSpec

  @nn.compact
  def __call__(self, x):
    spec, (b, n, d) = self.spec, x.shape
    flat = spec.norm(x.reshape(b * n, d), "norm")
    heads = (b, n, spec.heads, d // spec.heads)
    q, k, v = (spec.dense(d, name)(flat).reshape(heads) for name in "qkv")
    y = attend(q, k, v, spec.attention, spec.wide).reshape(b * n, d)
    return scaled(self, spec, spec.dense(d, "proj")(y)).reshape(b, n, d)


class Mlp(nn.Module):
  """The residual branch ls * fc2(gelu(fc1(norm(x)))), [B, N, D] -> [B, N, D]."""

  spec: BlockSpec

  @nn.compact
  def __call__(self, x):
    spec, (b, n, d) = self.spec, x.shape
    y = spec.norm(x.reshape(b * n, d), "norm")
    y = GELUS[spec.gelu](spec.dense(spec.mlp_width, "fc1")(y))
    return scaled(self, spec, spec.dense(d, "fc2")(y)).reshape(b, n, d)


class Block(nn.Module):
  """x + attn(x), then x + mlp(x); `rate` drops a sample's branch, None drops nothing."""

  spec: BlockSpec

  @nn.compact
  def __call__(self, x, rate=None):
    x = x + self.drop(Attention(self.spec, name="attn")(x), rate)
    return x + self.drop(Mlp(self.spec, name="mlp")(x), rate)

  def drop(self, y, rate):
    """Zero for a share `rate` of the samples, y / (1 - rate) for the others (stochastic depth)."""
    if rate is None:
      return y
    kept = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, (y.shape[0], 1, 1))
    return jnp.where(kept, y / jnp.asarray(1.0 - rate, y.dtype), jnp.zeros((), y.dtype))


class Encoder(nn.Module):
  """The stack of blocks, [B, N, D] -> [B, N, D].

  drop_path: rate of the last block; block i of L has drop_path * i / (L - 1).
  loop: "python" unrolls; "remat" recomputes each block in the backward pass; "scan" compiles one
  block and stacks its variables, of every collection, on axis 0; "scan_remat" does both.
  """

  spec: BlockSpec
  depth: int
  drop_path: float
  loop: str

  @nn.compact
  def __call__(self, x, train=False):
    rates = None
    if train and self.drop_path:
      if not self.has_rng("dropout"):
        raise ValueError(f"drop_path={self.drop_path} with train=True draws from the rng stream "
                         "'dropout', which was not given: pass rngs={'dropout': key}.")
      rates = np.linspace(0.0, self.drop_path, self.depth).astype(np.float32)
    kind = nn.remat(Block, prevent_cse="scan" not in self.loop) if "remat" in self.loop else Block
    if "scan" not in self.loop:
      for i in range(self.depth):
        x = kind(self.spec, name=f"blocks_{i}")(x, None if rates is None else rates[i])
      return x
    scan = nn.scan(
      lambda block, x, rate: (block(x, rate), None),
      variable_axes={nn.DenyList(("intermediates",)): 0},
      split_rngs={True: True},
      length=self.depth,
    )
    return scan(kind(self.spec, name="blocks"), x, None if rates is None else jnp.asarray(rates))[0]


class ViT(nn.Module):
  """images [B, S, S, 3], floating point and normalised -> logits [B, num_classes].

  num_classes: 0 leaves the head out and returns the pooled features [B, width].
  image_size: S, in pixels; it sets the length of the position table.
  registers: tokens between class token and patches that carry no position.
  no_embed_class: the position table covers the patches only (DeiT-3, models with registers).
  layer_scale: initial value of `ls`; None for models without.
  drop_path: rate of the last block; acts only with train=True, from the rng stream "dropout".
  dtype: of the computation; under bfloat16 the parameters, norms, softmax, head and logits stay
    float32.
  """

  num_classes: int
  width: int = 768
  depth: int = 12
  heads: int = 12
  patch: int = 16
  image_size: int = 224
  mlp_ratio: int = 4
  pool: str = "cls"
  registers: int = 0
  no_embed_class: bool = False
  layer_scale: float | None = None
  gelu: str = "exact"
  eps: float = 1e-6
  drop_path: float = 0.0
  loop: str = "python"
  dtype: str = "float32"
  attention: str = "xla"

  @nn.compact
  def __call__(self, images, train=False):
    check(self)
    check_images(self, images)
    dtype, d, prefix = jnp.dtype(self.dtype), self.width, 1 + self.registers
    spec = BlockSpec(d, self.heads, self.mlp_ratio * d, self.layer_scale, self.gelu, self.eps,
                     self.dtype, self.attention)

    p = (self.patch, self.patch)
    x = nn.Conv(d, p, strides=p, padding="VALID", dtype=dtype, name="patch_embed")(
      images.astype(dtype))
    b, n = x.shape[0], x.shape[1] * x.shape[2]
    x = x.reshape(b, n, d)

    small = nn.initializers.normal(1e-6)
    tokens = [self.param("cls_token", small, (1, 1, d), jnp.float32)]
    if self.registers:
      tokens.append(self.param("reg_tokens", small, (1, self.registers, d), jnp.float32))
    rows = n if self.no_embed_class else 1 + n
    table = self.param("pos_embed", kernel_init, (1, rows, d), jnp.float32).astype(dtype)
    tokens = [jnp.broadcast_to(t.astype(dtype), (b, *t.shape[1:])) for t in tokens]
    if self.no_embed_class:
      x = jnp.concatenate([*tokens, x + table], axis=1)
    else:  # registers carry no position in either form
      parts = [tokens[0] + table[:, :1], *tokens[1:], x + table[:, 1:]]
      x = jnp.concatenate(parts, axis=1)

    x = Encoder(spec, self.depth, self.drop_path, self.loop, name="encoder")(x, train=train)

    if self.pool == "cls":  # the norm acts token by token, so the class token alone suffices
      x = spec.norm(x[:, 0], "norm")
    else:
      x = spec.norm(jnp.mean(x[:, prefix:], axis=1, dtype=spec.wide), "fc_norm")
    if not self.num_classes:
      return x
    head = nn.Dense(self.num_classes, dtype=spec.wide, kernel_init=kernel_init, name="head")
    return head(x.astype(spec.wide))


def check(model):
  """Raises ValueError for options of a `ViT` that do not exist or do not go together."""
  for field, known in (("loop", LOOPS), ("dtype", DTYPES), ("attention", ATTENTIONS),
                       ("pool", POOLS), ("gelu", tuple(GELUS))):
    value = getattr(model, field)
    if value not in known:
      raise ValueError(f"{field}={value!r} is none of {', '.join(known)}.")
  for field in ("width", "depth", "heads", "patch", "image_size", "mlp_ratio"):
    value = getattr(model, field)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise ValueError(f"{field}={value!r} must be a whole number above 0.")
  for field in ("num_classes", "registers"):
    value = getattr(model, field)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
      raise ValueError(f"{field}={value!r} must be a whole number, 0 or more.")
  if model.image_size % model.patch:
    low = model.image_size // model.patch * model.patch
    raise ValueError(
      f"image_size={model.image_size} is not divisible by patch={model.patch}: take "
      f"{f'{low} or ' if low else ''}{low + model.patch}.")
  if model.width % model.heads:
    raise ValueError(f"width={model.width} is not divisible by heads={model.heads}.")
  if not 0.0 <= model.drop_path < 1.0:
    raise ValueError(f"drop_path={model.drop_path} must lie in [0, 1).")
  if model.dtype == "float64" and not jax.config.jax_enable_x64:
    raise ValueError("dtype='float64' needs JAX_ENABLE_X64=1 in the environment.")
  if model.attention == "cudnn" and (model.dtype != "bfloat16" or model.width // model.heads % 8):
    raise ValueError(
      "attention='cudnn' needs dtype='bfloat16' and a head width divisible by 8, not "
      f"dtype={model.dtype!r} and {model.width // model.heads}: take attention='xla'.")


def check_images(model, images):
  """Raises ValueError unless `images` is a floating [B, S, S, 3] with S = model.image_size."""
  s = model.image_size
  if jnp.ndim(images) != 4 or images.shape[-1] != 3:
    raise ValueError(f"images must be [batch, {s}, {s}, 3], not {tuple(jnp.shape(images))}.")
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f"images must be normalised floating point numbers, not {images.dtype}: "
                     "pass them through data.normalize.")
  if images.shape[1:3] != (s, s):
    raise ValueError(
      f"images of {images.shape[1]} x {images.shape[2]} pixels do not fit a model made for {s} x "
      f"{s}: resize them, or create the model with image_size of a multiple of {model.patch}.")
