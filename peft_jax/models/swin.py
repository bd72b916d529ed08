"""Swin transformer: attention inside windows, shifted in every second block, four stages.

    x = norm(patches W + b)                                          [B, S/4, S/4, C]
    x = x + attn(norm(x));  x = x + mlp(norm(x))                     depths[s] times in stage s
    x = norm([x00, x10, x01, x11]) W                                 before stages 1, 2, 3
    logits = mean(norm(x)) W + b

Liu et al. 2021, arXiv:2103.14030. Parameters are float32. Parameter tree:

    patch_embed/{proj,norm}  stages_1/downsample/{norm,reduction}
    stages_0/blocks_0/attn/{norm,q,k,v,proj,rel_pos}  stages_0/blocks_0/mlp/{norm,fc1,fc2}
    norm  head

`attn` and `mlp` are residual branches: they take the stream [B, H, W, C] and return what is added
to it. Inside, tokens are flattened to [T, C] (see vit.py).

The stream may be a pair (x, tokens): tokens [B, p, C] that have no place on the map. In each block
they join every window of their sample, without positions, and get the mean of what the windows
make of them; merging takes a token for its four; the mean before the head counts them.

Any map fits: it is rolled, then padded with zeros at the bottom and right to whole windows, and the
padding takes part in the attention, as in timm (the original code wants divisible sizes). A map not
larger than the window is one window, and nothing is shifted: `rel_pos` then is smaller, too.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.models import layers
from peft_jax.models.layers import (
  Mlp,
  Numerics,
  attend,
  beside,
  check_images,
  drop,
  drop_rates,
  rows,
)

LOOPS = ("python", "remat")


@functools.cache
def relative_index(window):
  """[N, N] of query a, key b: row of `rel_pos` for how far a lies below and right of b.

  N = window ** 2 tokens, row by row; (row_a - row_b + w - 1) (2 w - 1) + col_a - col_b + w - 1.
  """
  row, col = np.divmod(np.arange(window * window), window)
  down, right = (x[:, None] - x[None] + window - 1 for x in (row, col))
  return (down * (2 * window - 1) + right).astype(np.int32)


@functools.cache
def shift_mask(side, window, shift):
  """[windows, N, N]: 0 where two tokens of a shifted map may attend, -100 elsewhere.

  The roll puts the first `shift` rows and columns behind the last ones, into the same windows; they
  stay apart. As in timm this is told after padding, so that padding counts as their kind.
  """
  wrapped = np.arange(side) >= side - shift
  label = 2 * wrapped[:, None] + wrapped[None]
  n = side // window
  label = label.reshape(n, window, n, window).transpose(0, 2, 1, 3).reshape(n * n, -1)
  return np.where(label[:, :, None] == label[:, None], 0.0, -100.0).astype(np.float32)


class Attention(nn.Module):
  """The residual branch proj(attention within windows(norm(x))), [B, H, W, C] -> the same.

  window: tokens along its side, at most H = W; shift: of the windows against the map.

  x may be a pair (x, tokens): every window attends to the tokens [B or 1, p, C] of its sample, too,
  and the result is what is added to x alone; to both, a pair, if `asking`: then the tokens attend
  in every window, and the mean over the windows is theirs.
  """

  numerics: Numerics
  heads: int
  window: int
  shift: int

  @nn.compact
  def __call__(self, x, asking=False):
    x, tokens = x if isinstance(x, tuple) else (x, None)
    num, w, (b, side, _, c) = self.numerics, self.window, x.shape
    y, more = num.norm(rows((x, tokens)), "norm")
    y = y.reshape(x.shape)
    if self.shift:
      y = jnp.roll(y, (-self.shift, -self.shift), (1, 2))
    n = -(-side // w)
    y = jnp.pad(y, ((0, 0), (0, n * w - side), (0, n * w - side), (0, 0)))
    y = y.reshape(b, n, w, n, w, c).transpose(0, 1, 3, 2, 4, 5).reshape(-1, c)

    heads = (self.heads, c // self.heads)
    layer = {name: num.dense(c, name) for name in "qkv"}
    part = {name: layer[name](y).reshape(-1, w * w, *heads) for name in "qkv"}
    shape = ((2 * w - 1) ** 2, self.heads)
    table = self.param("rel_pos", layers.kernel_init, shape, jnp.float32).astype(num.wide)
    bias = table[relative_index(w)].transpose(2, 0, 1)[None]  # [1, heads, N, N]
    if self.shift:
      bias = bias + jnp.asarray(shift_mask(n * w, w, self.shift), num.wide)[:, None]
    if tokens is not None:
      for name in "qkv" if asking else "kv":
        own = layer[name](more).reshape(*tokens.shape[:2], *heads)
        part[name] = beside(part[name], own)
      longer = [(0, part[name].shape[1] - w * w) for name in "qk"]
      bias = jnp.pad(bias, [(0, 0), (0, 0), *longer])
    y = attend(*part.values(), num.wide, bias)
    y, more = y[:, : w * w], y[:, w * w :]

    y = y.reshape(b, n, n, w, w, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, n * w, n * w, c)
    y = y[:, :side, :side]
    if self.shift:
      y = jnp.roll(y, (self.shift, self.shift), (1, 2))
    proj = num.dense(c, "proj")
    y = proj(y.reshape(-1, c)).reshape(x.shape)
    if not asking:
      return y
    more = jnp.mean(more.reshape(b, n * n, -1, c), axis=1)
    return y, proj(more.reshape(-1, c)).reshape(more.shape)


class Block(nn.Module):
  """x + attn(x), then x + mlp(x); `rate` drops a sample's branch, None drops nothing."""

  numerics: Numerics
  heads: int
  window: int
  shift: int
  hidden: int

  @nn.compact
  def __call__(self, x, rate=None):
    attn = Attention(self.numerics, self.heads, self.window, self.shift, name="attn")
    mlp = Mlp(self.numerics, self.hidden, name="mlp")
    x = jax.tree.map(jnp.add, x, drop(self, attn(x, asking=isinstance(x, tuple)), rate))
    return jax.tree.map(jnp.add, x, drop(self, jax.tree.map(mlp, x), rate))


class PatchEmbed(nn.Module):
  """norm(patches W + b), [B, S, S, 3] -> [B, S // patch, S // patch, width]."""

  numerics: Numerics
  patch: int
  width: int

  @nn.compact
  def __call__(self, images):
    return self.numerics.norm(self.numerics.patches(self.width, self.patch, "proj")(images), "norm")


class Merging(nn.Module):
  """norm([x00, x10, x01, x11]) W of each 2 x 2 tokens (row, column), [B, H, W, C] -> 2 C wide.

  Odd maps get a row and a column of zeros. Of a pair (x, tokens), a token t becomes
  norm([t, t, t, t]) W.
  """

  numerics: Numerics

  @nn.compact
  def __call__(self, x):
    x, tokens = x if isinstance(x, tuple) else (x, None)
    num, (b, side, _, c) = self.numerics, x.shape
    n = -(-side // 2)
    x = jnp.pad(x, ((0, 0), (0, 2 * n - side), (0, 2 * n - side), (0, 0)))
    x = x.reshape(b, n, 2, n, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(-1, 4 * c)
    more = None if tokens is None else jnp.tile(tokens, 4).reshape(-1, 4 * c)
    reduction = num.dense(2 * c, "reduction", use_bias=False)
    y, more = jax.tree.map(reduction, num.norm((x, more), "norm"))
    y = y.reshape(b, n, n, 2 * c)
    return y if more is None else (y, more.reshape(*tokens.shape[:2], 2 * c))


class Stage(nn.Module):
  """Patch merging, but before the first stage, and blocks of which every second is shifted."""

  numerics: Numerics
  heads: int
  window: int
  mlp_ratio: int
  merge: bool
  loop: str

  @nn.compact
  def __call__(self, x, rates):
    if self.merge:
      x = Merging(self.numerics, name="downsample")(x)
    _, side, _, width = jax.tree.leaves(x)[0].shape
    window = min(self.window, side)
    shift = 0 if side == window else window // 2
    kind = nn.remat(Block) if self.loop == "remat" else Block
    for i, rate in enumerate(rates):
      block = kind(self.numerics, self.heads, window, shift * (i % 2), self.mlp_ratio * width,
                   name=f"blocks_{i}")
      x = block(x, rate)
    return x


class Swin(nn.Module):
  """images [B, S, S, 3], floating point and normalised -> logits [B, num_classes].

  num_classes: 0 leaves the head out and returns the pooled features [B, 8 width].
  head_layers: linear layers of the head; more than one need "batch_stats", see layers.Head.
  head_dropout: rate after each hidden layer of the head; acts only with train=True.
  width: of the first stage; each further one is twice as wide.
  depths, heads: one entry per stage.  window: tokens along a window's side.
  image_size: S, in pixels; any size, as the model holds no position table.
  drop_path: rate of the last block of the last stage; acts only with train=True, from the rng
    stream "dropout".
  loop: "python" | "remat", which recomputes each block in the backward pass.
  dtype: of the computation; under bfloat16 the parameters, norms, softmax, head and logits stay
    float32.
  """

  num_classes: int
  width: int = 96
  depths: tuple[int, ...] = (2, 2, 6, 2)
  heads: tuple[int, ...] = (3, 6, 12, 24)
  window: int = 7
  patch: int = 4
  image_size: int = 224
  mlp_ratio: int = 4
  gelu: str = "exact"
  eps: float = 1e-5
  drop_path: float = 0.0
  loop: str = "python"
  dtype: str = "float32"
  head_layers: int = 1
  head_dropout: float = 0.0

  @nn.compact
  def __call__(self, images, train=False):
    check(self)
    check_images(self, images)
    num = Numerics(eps=self.eps, gelu=self.gelu, dtype=self.dtype)
    rates = drop_rates(self, sum(self.depths), train)

    x = PatchEmbed(num, self.patch, self.width, name="patch_embed")(images.astype(self.dtype))
    for s, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
      stage = Stage(num, heads, self.window, self.mlp_ratio, s > 0, self.loop, name=f"stages_{s}")
      x, rates = stage(x, rates[:depth]), rates[depth:]
    x = num.norm(x, "norm")
    if isinstance(x, tuple):
      x = beside(x[0].reshape(len(images), -1, x[0].shape[-1]), x[1])
    x = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=num.wide).astype(self.dtype)
    return num.head(self, x, train)


def check(model):
  """Raises ValueError for options of a `Swin` that do not exist or do not go together."""
  layers.check_stages(model, "depths", "heads")
  counts = ("width", "depths", "heads", "window", "patch", "mlp_ratio")
  layers.check(model, counts, loop=LOOPS)
  if model.image_size < model.patch:
    raise ValueError(f"image_size={model.image_size} is less than one patch={model.patch}.")
  for s, heads in enumerate(model.heads):
    if model.width * 2**s % heads:
      raise ValueError(f"heads={model.heads}: the width of stage {s}, {model.width * 2**s}, is not "
                       f"divisible by {heads}.")
