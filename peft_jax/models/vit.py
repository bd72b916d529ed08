"""Vision transformer: patches to tokens, pre-norm blocks, class token or mean, linear head.

    x = [cls, registers, patches W + b] + table
    x = x + ls * attn(norm(x));  x = x + ls * mlp(norm(x))           depth times
    logits = norm(x)[cls] W + b                                      pool = "cls"
    logits = fc_norm(mean of the patches of x) W + b                 pool = "avg"

Dosovitskiy et al. 2021, arXiv:2010.11929. The options cover the ViTs of the AugReg, MAE, MoCo v3,
DeiT (distilled too), CLIP and DINOv2 checkpoints, with and without registers. Parameters are
float32.

Parameter tree (`blocks` alone, stacked on axis 0, under the scan loops):

    patch_embed/{kernel,bias}  cls_token  dist_token  reg_tokens  pos_embed  norm_pre
    encoder/blocks_0/attn/{norm,q,k,v,proj,ls}  encoder/blocks_0/mlp/{norm,fc1,fc2,ls}
    norm (fc_norm for pool="avg")  pre_logits  head  head_dist

`attn` and `mlp` are residual branches: they take the stream [B, N, D] and return what is added to
it. The stream may have more tokens behind the patches: the mean of pool="avg" counts them. Inside,
tokens are flattened to [B * N, D]: on CPU the three-dimensional contractions cost 15 % more.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from peft_jax.models.layers import (
  Mlp,
  Numerics,
  attend,
  beside,
  check_images,
  drop,
  drop_rates,
  is_whole,
  kernel_init,
  rows,
)
from peft_jax.models.layers import check as check_shared

LOOPS = ("python", "remat", "scan", "scan_remat")
ATTENTIONS = ("xla", "cudnn")
POOLS = ("cls", "avg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSpec(Numerics):
  """What all blocks of one ViT share; the fields are those of `ViT`."""

  heads: int
  hidden: int
  attention: str = "xla"


class Attention(nn.Module):
  """The residual branch ls * proj(attention(norm(x))), [B, N, D] -> [B, N, D].

  x may be a pair (x, tokens): tokens [B or 1, p, D] are normed and attended to as x is, but ask
  nothing themselves, and the result is what is added to x alone.
  """

  spec: BlockSpec

  @nn.compact
  def __call__(self, x):
    x, tokens = x if isinstance(x, tuple) else (x, None)
    spec, (b, n, d) = self.spec, x.shape
    flat, more = spec.norm(rows((x, tokens)), "norm")
    heads = (spec.heads, d // spec.heads)
    layer = {name: spec.dense(d, name) for name in "qkv"}
    q, k, v = (layer[name](flat).reshape(b, n, *heads) for name in "qkv")
    if tokens is not None:
      more = {name: layer[name](more).reshape(*tokens.shape[:2], *heads) for name in "kv"}
      k, v = beside(k, more["k"]), beside(v, more["v"])
    y = cudnn(q, k, v) if spec.attention == "cudnn" else attend(q, k, v, spec.wide)
    return spec.scaled(self, spec.dense(d, "proj")(y.reshape(b * n, d)), "ls").reshape(b, n, d)


def cudnn(q, k, v):
  """`attend` by the fused kernel of NVIDIA's library."""
  if jax.default_backend() != "gpu":
    raise ValueError("attention='cudnn' runs on NVIDIA GPUs only, and the default backend is "
                     f"{jax.default_backend()}: take attention='xla'.")
  return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


class Block(nn.Module):
  """x + attn(x), then x + mlp(x); `rate` drops a sample's branch, None drops nothing."""

  spec: BlockSpec

  @nn.compact
  def __call__(self, x, rate=None):
    x = x + drop(self, Attention(self.spec, name="attn")(x), rate)
    return x + drop(self, Mlp(self.spec, self.spec.hidden, name="mlp")(x), rate)


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
    rates = drop_rates(self, self.depth, train)
    kind = nn.remat(Block, prevent_cse="scan" not in self.loop) if "remat" in self.loop else Block
    if "scan" not in self.loop:
      for i, rate in enumerate(rates):
        x = kind(self.spec, name=f"blocks_{i}")(x, rate)
      return x
    scan = nn.scan(
      lambda block, x, rate: (block(x, rate), None),
      variable_axes={nn.DenyList(("intermediates",)): 0},
      split_rngs={True: True},
      length=self.depth,
    )
    rates = None if rates[0] is None else jnp.asarray(rates)
    return scan(kind(self.spec, name="blocks"), x, rates)[0]


class ViT(nn.Module):
  """images [B, S, S, 3], floating point and normalised -> logits [B, num_classes].

  num_classes: 0 leaves the head out and returns the pooled features [B, width].
  head_layers: linear layers of the head; more than one need "batch_stats", see layers.Head.
  head_dropout: rate after each hidden layer of the head; acts only with train=True.
  image_size: S, in pixels; it sets the length of the position table.
  registers: tokens between class token and patches that carry no position.
  no_embed_class: the position table covers the patches only (DeiT-3, models with registers).
  distilled: a second token and head (DeiT); their logits, or features, are averaged.
  norm_pre: a norm between the position table and the blocks (CLIP).
  patch_bias, head_bias: False for CLIP's patches and for its projection, which is the head.
  pre_logits: tanh(x W + b) between pooled token and head (the original ImageNet-21k models).
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
  distilled: bool = False
  norm_pre: bool = False
  patch_bias: bool = True
  pre_logits: bool = False
  head_bias: bool = True
  head_layers: int = 1
  head_dropout: float = 0.0

  @nn.compact
  def __call__(self, images, train=False):
    check(self)
    check_images(self, images, f", a multiple of {self.patch}")
    dtype, d = jnp.dtype(self.dtype), self.width
    spec = BlockSpec(
      heads=self.heads, hidden=self.mlp_ratio * d, layer_scale=self.layer_scale, gelu=self.gelu,
      eps=self.eps, dtype=self.dtype, attention=self.attention)

    x = spec.patches(d, self.patch, "patch_embed", use_bias=self.patch_bias)(images.astype(dtype))
    b, n = x.shape[0], x.shape[1] * x.shape[2]
    x = self.placed(x.reshape(b, n, d))
    first = x.shape[1] - n  # the first patch, behind class token and registers
    if self.norm_pre:
      x = spec.norm(x, "norm_pre")
    x = Encoder(spec, self.depth, self.drop_path, self.loop, name="encoder")(x, train=train)

    if self.pool == "avg":
      x = spec.norm(jnp.mean(x[:, first:], axis=1, dtype=spec.wide), "fc_norm")
    else:  # the norm acts token by token, so the tokens that are read suffice
      x = spec.norm(x[:, :2] if self.distilled else x[:, 0], "norm")
    if self.pre_logits:
      x = jnp.tanh(spec.dense(d, "pre_logits")(x))
    if not self.distilled:
      return spec.head(self, x, train, "head", self.head_bias)
    first, second = (spec.head(self, x[:, i], train, name, self.head_bias)
                     for i, name in enumerate(("head", "head_dist")))
    return (first + second) / 2

  def placed(self, x):
    """The patches x [B, N, D] with the other tokens before them and positions added."""
    def token(name, start, rows=1):
      value = self.param(name, start, (1, rows, self.width), jnp.float32).astype(x.dtype)
      return jnp.broadcast_to(value, (x.shape[0], rows, self.width))

    small = nn.initializers.normal(1e-6)
    tokens, registers = [token("cls_token", small)], []
    if self.distilled:
      tokens.append(token("dist_token", kernel_init))
    if self.registers:  # they carry no position
      registers.append(token("reg_tokens", small, self.registers))
    rows = x.shape[1] + (0 if self.no_embed_class else len(tokens))
    table = self.param("pos_embed", kernel_init, (1, rows, self.width), jnp.float32)
    table = table.astype(x.dtype)
    if not self.no_embed_class:
      tokens = [t + table[:, i : i + 1] for i, t in enumerate(tokens)]
    return jnp.concatenate([*tokens, *registers, x + table[:, rows - x.shape[1]:]], axis=1)


def check(model):
  """Raises ValueError for options of a `ViT` that do not exist or do not go together."""
  counts = ("width", "depth", "heads", "patch", "mlp_ratio")
  check_shared(model, counts, loop=LOOPS, attention=ATTENTIONS, pool=POOLS)
  if not is_whole(model.registers, 0):
    raise ValueError(f"registers={model.registers!r} must be a whole number, 0 or more.")
  if model.image_size % model.patch:
    low = model.image_size // model.patch * model.patch
    raise ValueError(
      f"image_size={model.image_size} is not divisible by patch={model.patch}: take "
      f"{f'{low} or ' if low else ''}{low + model.patch}.")
  if model.width % model.heads:
    raise ValueError(f"width={model.width} is not divisible by heads={model.heads}.")
  if model.distilled and (model.pool != "cls" or model.pre_logits):
    raise ValueError("distilled=True reads the class and the distillation token with one head "
                     "each: leave pool='cls' and pre_logits=False.")
  if model.head_layers > 1 and not model.head_bias:
    raise ValueError("head_bias=False is for a projection: leave head_layers=1.")
  if model.attention == "cudnn" and (model.dtype != "bfloat16" or model.width // model.heads % 8):
    raise ValueError(
      "attention='cudnn' needs dtype='bfloat16' and a head width divisible by 8, not "
      f"dtype={model.dtype!r} and {model.width // model.heads}: take attention='xla'.")
