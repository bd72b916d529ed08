"""The training steps of step_cost.py --time on PyTorch's side; needs torch, and peft or timm."""

import torch
from torch import nn
from torch.nn import functional

FROZEN = ("norm", "pos_embed", "cls_token")  # of GPS, by what names contain


class Attention(nn.Module):
  def __init__(self, d, heads):
    super().__init__()
    self.heads, self.qkv, self.proj = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)

  def forward(self, x):
    b, n, d = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
    y = functional.scaled_dot_product_attention(q, k, v)
    return self.proj(y.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
  def __init__(self, d, heads, hidden):
    super().__init__()
    self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
    self.attn = Attention(d, heads)
    self.fc1, self.fc2 = nn.Linear(d, hidden), nn.Linear(hidden, d)

  def forward(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
  def __init__(self, model, classes):
    super().__init__()
    d, rows = model.width, 1 + (model.image_size // model.patch) ** 2
    self.patch_embed = nn.Conv2d(3, d, model.patch, model.patch)
    self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
    self.pos_embed = nn.Parameter(0.02 * torch.randn(1, rows, d))
    self.blocks = nn.Sequential(
      *(Block(d, model.heads, model.mlp_ratio * d) for _ in range(model.depth)))
    self.norm, self.head = nn.LayerNorm(d, eps=1e-6), nn.Linear(d, classes)

  def forward(self, x):
    x = self.patch_embed(x).flatten(2).transpose(1, 2)
    x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
    return self.head(self.norm(self.blocks(x)[:, 0]))


def runner(name, model, batch, threads, classes):
  """run() -> None: one step as plain PyTorch has it, or a forward pass, on a model like `model`.

  LoRA by HF PEFT on qkv, proj, fc1 and fc2; GPS as released, without AMP, on timm's model.
  """
  torch.set_num_threads(threads)
  torch.manual_seed(0)
  images = torch.randn(batch, 3, model.image_size, model.image_size)
  labels = torch.arange(batch) % classes
  net = timm_model(model, classes) if name == "gps" else VisionTransformer(model, classes)
  if name == "lora":
    import peft

    config = peft.LoraConfig(
      r=8, lora_alpha=8, target_modules=["qkv", "proj", "fc1", "fc2"], modules_to_save=["head"])
    net = peft.get_peft_model(net, config)
  elif name not in ("full", "gps"):
    for path, parameter in net.named_parameters():
      parameter.requires_grad = path.startswith("head") or name == "bias" and path.endswith("bias")
  if name == "forward":
    net.eval()

    def forward():
      with torch.no_grad():
        net(images)

    return forward
  net.train()
  trained = [p for p in net.parameters() if p.requires_grad]
  rule = torch.optim.Adam if name == "gps" else torch.optim.AdamW
  tx = rule(trained, lr=1e-3, weight_decay=0 if name == "gps" else 1e-4, fused=True)
  masks = [mask(path, p) for path, p in net.named_parameters()] if name == "gps" else []

  def run():
    tx.zero_grad()
    functional.cross_entropy(net(images), labels).backward()
    for parameter, one in zip(trained, masks, strict=False):
      parameter.grad.mul_(one)
    tx.step()

  return run


def timm_model(model, classes):
  import timm

  same = {"embed_dim": model.width, "depth": model.depth, "num_heads": model.heads}
  return timm.create_model(
    "vit_base_patch16_224", num_classes=classes, img_size=model.image_size, **same)


def mask(path, parameter, k=1):
  """GPS's mask: k inputs of each neuron, biases and head; of nothing else.

  Which inputs makes no difference to the time: here those with the largest |W|.
  """
  if any(word in path for word in FROZEN):
    return torch.zeros_like(parameter)
  if path.startswith("head") or path.endswith("bias"):
    return torch.ones_like(parameter)
  rows = parameter.detach().abs().flatten(1)
  return torch.zeros_like(rows).scatter_(1, rows.topk(k, 1).indices, 1.0).view_as(parameter)
