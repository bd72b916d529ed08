"""ViT and Swin with their prompts inserted literally, one image at a time, in NumPy float64.

As the released VPT code says it: prompts stand behind the class token (ViT) or before the patches
of a window (Swin), go through whole blocks, and deep ones are overwritten before the next block.
"""

import math

import numpy as np

erf = np.vectorize(math.erf, otypes=[float])


def norm(p, x, eps):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
  return x * p["scale"] + p["bias"]


def dense(p, x):
  return x @ p["kernel"] + p.get("bias", 0)


def mlp(p, x, eps):
  y = dense(p["fc1"], norm(p["norm"], x, eps))
  return p.get("ls", 1) * dense(p["fc2"], y * (1 + erf(y / math.sqrt(2))) / 2)


def attention(p, x, heads, bias=0):
  """Of one sequence x [N, C], normed before; bias: [heads, N, N]."""
  q, k, v = (dense(p[n], x).reshape(len(x), heads, -1).transpose(1, 0, 2) for n in "qkv")
  scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]) + bias
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  y = weights / weights.sum(-1, keepdims=True) @ v
  return p.get("ls", 1) * dense(p["proj"], y.transpose(1, 0, 2).reshape(len(x), -1))


def patches(p, image, side):
  n = image.shape[0] // side
  pixels = image.reshape(n, side, n, side, 3).transpose(0, 2, 1, 3, 4).reshape(n, n, -1)
  return pixels @ p["kernel"].reshape(-1, p["kernel"].shape[-1]) + p["bias"]


def vit(model, params, image, prompts, official=False, noise=None):
  """Logits of one image; prompts: [[p, D]], or one per block.

  noise: [D], added to what each block makes of its prompts.
  """
  x = patches(params["patch_embed"], image, model.patch).reshape(-1, model.width)
  x = x + params["pos_embed"][0, -len(x):]
  first = params["cls_token"][0]
  if not model.no_embed_class:
    first = first + params["pos_embed"][0, :1]
  if model.registers:
    first = np.concatenate([first, params["reg_tokens"][0]])
  here = slice(len(first), len(first) + len(prompts[0]))
  x = np.concatenate([first, prompts[0], x])
  for i in range(model.depth):
    p = params["encoder"][f"blocks_{i}"]
    if len(prompts) > 1:
      x[here] = prompts[i]
    x = x + attention(p["attn"], norm(p["attn"]["norm"], x, model.eps), model.heads)
    x = x + mlp(p["mlp"], x, model.eps)
    if noise is not None:
      x[here] += noise
  if not official:
    x = np.delete(x, here, axis=0)
  if model.pool == "avg":
    return dense(params["head"], norm(params["fc_norm"], x[len(first):].mean(0), model.eps))
  return dense(params["head"], norm(params["norm"], x[0], model.eps))


def windows(p, x, tokens, heads, window, shift):
  """Attention of x [H, H, C] and tokens [p, C], both normed: what is added to either."""
  side, c = x.shape[1:]
  n, many = -(-side // window), len(tokens)
  padded = np.zeros((n * window, n * window, c))
  padded[:side, :side] = np.roll(x, (-shift, -shift), (0, 1))
  down, right = np.divmod(np.arange(window**2), window)
  between = (down[:, None] - down + window - 1) * (2 * window - 1)
  between += right[:, None] - right + window - 1
  y, heard = np.zeros_like(padded), []
  for i in range(0, n * window, window):
    for j in range(0, n * window, window):
      bias = np.zeros((heads, many + window**2, many + window**2))
      bias[:, many:, many:] = p["rel_pos"][between].transpose(2, 0, 1)
      if shift:
        kind = 2 * (i + down >= n * window - shift) + (j + right >= n * window - shift)
        bias[:, many:, many:] -= 100 * (kind[:, None] != kind)
      own = padded[i : i + window, j : j + window].reshape(-1, c)
      out = attention(p, np.concatenate([tokens, own]), heads, bias)
      heard.append(out[:many])
      y[i : i + window, j : j + window] = out[many:].reshape(window, window, c)
  return np.roll(y[:side, :side], (shift, shift), (0, 1)), np.mean(heard, axis=0)


def swin(model, params, image, prompts, official=False):
  """Logits of one image; prompts: [[p, C]], or one per block with the width of its stage."""
  eps, prompts = model.eps, list(prompts)
  deep, tokens = len(prompts) > 1, prompts[0]
  p = params["patch_embed"]
  x = norm(p["norm"], patches(p["proj"], image, model.patch), eps)
  for s, depth in enumerate(model.depths):
    stage, side = params[f"stages_{s}"], x.shape[0]
    if s:
      p, n = stage["downsample"], -(-side // 2)
      x = np.pad(x, ((0, 2 * n - side), (0, 2 * n - side), (0, 0)))
      x = np.concatenate([x[a::2, b::2] for b in (0, 1) for a in (0, 1)], -1)
      x, tokens = (dense(p["reduction"], norm(p["norm"], y, eps))
                   for y in (x, np.concatenate([tokens] * 4, -1)))
    window = min(model.window, x.shape[0])
    for i in range(depth):
      p = stage[f"blocks_{i}"]
      tokens = prompts.pop(0) if deep else tokens
      shift = window // 2 if i % 2 and window < x.shape[0] else 0
      normed = (norm(p["attn"]["norm"], y, eps) for y in (x, tokens))
      x, tokens = (a + b for a, b in zip(
        (x, tokens), windows(p["attn"], *normed, model.heads[s], window, shift), strict=True))
      x, tokens = (y + mlp(p["mlp"], y, eps) for y in (x, tokens))
  x = np.concatenate([tokens[: len(tokens) * official], x.reshape(-1, x.shape[-1])])
  return dense(params["head"], norm(params["norm"], x, eps).mean(0))
