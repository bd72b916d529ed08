"""ConvNeXt, versions 1 and 2: depthwise convolutions and pointwise MLPs in four stages.

    x = norm(patches W + b)                                          [B, S/4, S/4, C]
    x = x + gamma * fc2(gelu(fc1(norm(dwconv(x)))))                  depths[s] times in stage s
    x = conv(norm(x))                                                2 x 2, before stages 1, 2, 3
    logits = norm(mean(x)) W + b

Version 2 has no gamma; instead fc2 reads grn(h), the global response norm of h = gelu(fc1(...)):

    n = sqrt(sum of h^2 over the map);  grn(h) = h + bias + scale * h * n / (mean of n + 1e-6)

Liu et al. 2022, arXiv:2201.03545; Woo et al. 2023, arXiv:2301.00808. Parameters are float32.
Parameter tree:

    stem/{conv,norm}  stages_1/downsample/{norm,conv}
    stages_0/blocks_0/{dwconv,norm,fc1,fc2,gamma}  (version 2: grn/{scale,bias} for gamma)
    norm  head

A block is a residual branch: it takes the stream [B, H, W, C] and returns what is added to it.
Convolutions between the stages drop the last row and column of odd maps.
"""

import flax.linen as nn
import jax.numpy as jnp

from peft_jax.models import layers
from peft_jax.models.layers import Numerics, check_images, drop, drop_rates, kernel_init

LOOPS = ("python", "remat")


class Block(nn.Module):
  """The residual branch gamma * fc2(gelu(fc1(norm(dwconv(x))))), [B, H, W, C] -> the same.

  grn: puts the global response norm before fc2.
  """

  numerics: Numerics
  grn: bool

  @nn.compact
  def __call__(self, x):
    num, (b, h, w, c) = self.numerics, x.shape
    y = nn.Conv(c, (7, 7), padding=((3, 3), (3, 3)), feature_group_count=c, dtype=num.dtype,
                kernel_init=kernel_init, name="dwconv")(x)
    y = num.norm(y.reshape(-1, c), "norm")
    y = num.act(num.dense(4 * c, "fc1")(y))
    if self.grn:
      y = ResponseNorm(num, name="grn")(y.reshape(b, h * w, 4 * c)).reshape(-1, 4 * c)
    return num.scaled(self, num.dense(c, "fc2")(y), "gamma").reshape(x.shape)


class ResponseNorm(nn.Module):
  """x + bias + scale * x * n / mean(n), n the length of each channel's map, x [B, N, C]."""

  numerics: Numerics

  @nn.compact
  def __call__(self, x):
    wide, zeros, shape = self.numerics.wide, nn.initializers.zeros, x.shape[-1:]
    scale = self.param("scale", zeros, shape, jnp.float32).astype(wide)[None, None]
    bias = self.param("bias", zeros, shape, jnp.float32).astype(wide)[None, None]
    y = x.astype(wide)
    square = jnp.sum(jnp.square(y), axis=1, keepdims=True)
    some = square > 0  # the square root has no gradient at a channel that is zero all over
    n = jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)
    n = n / (jnp.mean(n, axis=-1, keepdims=True) + 1e-6)
    return (y + bias + scale * (y * n)).astype(x.dtype)


class Stem(nn.Module):
  """norm(patches W + b), [B, S, S, 3] -> [B, S // patch, S // patch, width]."""

  numerics: Numerics
  patch: int
  width: int

  @nn.compact
  def __call__(self, images):
    num = self.numerics
    conv = num.patches(self.width, self.patch, "conv", kernel_init=kernel_init)
    return num.norm(conv(images), "norm")


class Downsample(nn.Module):
  """A 2 x 2 convolution of norm(x), [B, H, W, C] -> [B, H // 2, W // 2, width]."""

  numerics: Numerics
  width: int

  @nn.compact
  def __call__(self, x):
    num = self.numerics
    return num.patches(self.width, 2, "conv", kernel_init=kernel_init)(num.norm(x, "norm"))


class Stage(nn.Module):
  """Down-sampling, but before the first stage, and blocks; width: of this stage."""

  numerics: Numerics
  width: int
  grn: bool
  downsample: bool
  loop: str

  @nn.compact
  def __call__(self, x, rates):
    if self.downsample:
      x = Downsample(self.numerics, self.width, name="downsample")(x)
    kind = nn.remat(Block) if self.loop == "remat" else Block
    for i, rate in enumerate(rates):
      x = x + drop(self, kind(self.numerics, self.grn, name=f"blocks_{i}")(x), rate)
    return x


class ConvNeXt(nn.Module):
  """images [B, S, S, 3], floating point and normalised -> logits [B, num_classes].

  num_classes: 0 leaves the head out and returns the pooled features [B, widths[-1]].
  head_layers: linear layers of the head; more than one need "batch_stats", see layers.Head.
  head_dropout: rate after each hidden layer of the head; acts only with train=True.
  widths, depths: one entry per stage.
  image_size: S, in pixels; any size that leaves the last stage a map.
  layer_scale: initial value of `gamma`; None for models without (version 2).
  grn: global response norm (version 2).
  drop_path: rate of the last block of the last stage; acts only with train=True, from the rng
    stream "dropout".
  loop: "python" | "remat", which recomputes each block in the backward pass.
  dtype: of the computation; under bfloat16 the parameters, norms, head and logits stay float32.
  """

  num_classes: int
  widths: tuple[int, ...] = (96, 192, 384, 768)
  depths: tuple[int, ...] = (3, 3, 9, 3)
  patch: int = 4
  image_size: int = 224
  layer_scale: float | None = 1e-6
  grn: bool = False
  gelu: str = "exact"
  eps: float = 1e-6
  drop_path: float = 0.0
  loop: str = "python"
  dtype: str = "float32"
  head_layers: int = 1
  head_dropout: float = 0.0

  @nn.compact
  def __call__(self, images, train=False):
    check(self)
    check_images(self, images)
    num = Numerics(eps=self.eps, gelu=self.gelu, dtype=self.dtype, layer_scale=self.layer_scale)
    rates = drop_rates(self, sum(self.depths), train)

    x = Stem(num, self.patch, self.widths[0], name="stem")(images.astype(self.dtype))
    for s, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
      stage = Stage(num, width, self.grn, s > 0, self.loop, name=f"stages_{s}")
      x, rates = stage(x, rates[:depth]), rates[depth:]
    x = num.norm(jnp.mean(x, axis=(1, 2), dtype=num.wide), "norm")
    return num.head(self, x, train)


def check(model):
  """Raises ValueError for options of a `ConvNeXt` that do not exist or do not go together."""
  layers.check_stages(model, "widths", "depths")
  layers.check(model, ("widths", "depths", "patch"), loop=LOOPS)
  least = model.patch * 2 ** (len(model.depths) - 1)
  if model.image_size < least:
    raise ValueError(f"image_size={model.image_size} leaves no map in stage "
                     f"{len(model.depths) - 1}: take {least} or more.")
