"""Makes the small files of this folder with the programs whose files users bring.

    python make.py        with torch, safetensors and numpy installed; the tests need none of them

torch_*.pth: what torch.save wrote. torch_*.npz: the state dict that each of them holds.
"""

import argparse
import collections
import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent


def state(seed=0):
  torch.manual_seed(seed)
  big = torch.randn(4, 6)
  shared = torch.randn(20)
  return collections.OrderedDict({
    "plain.weight": torch.randn(3, 5),
    "bfloat16": torch.randn(7).bfloat16(),
    "float16": torch.randn(2, 2).half(),
    "float64": torch.randn(3, dtype=torch.float64),
    "transposed": torch.randn(5, 3).t(),
    "column": big[:, 2],
    "corner": big[1:3, 1:4],
    "tied": shared,
    "tied.again": shared,
    "tied.half": shared[10:],
    "tied.second": shared.view(4, 5)[::2],
    "expanded": torch.tensor([2.5]).expand(3),
    "scalar": torch.tensor(3.25),
    "empty": torch.zeros(0, 3),
    "int64": torch.tensor([-(2**60), 5]),
    "int32": torch.tensor([1, -2], dtype=torch.int32),
    "uint8": torch.tensor([0, 255], dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "parameter": torch.nn.Parameter(torch.randn(2, 3)),
  })


def module():
  torch.manual_seed(1)
  return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def training_run():
  """What the training programs of MAE, Swin and DeiT save beside the weights."""
  net = module()
  optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
  net(torch.randn(5, 3)).sum().backward()
  optimizer.step()
  args = argparse.Namespace(lr=1e-3, betas=(0.9, 0.95), name="run", device=None, layers=[1, 2])
  return {
    "model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 300, "args": args,
    "scaler": {"scale": 65536.0, "growth_factor": 2.0}, "max_accuracy": np.float64(83.5),
    "best": np.float32(1.5), "size": torch.Size([2, 3]),
  }


FILES = {
  "torch_state": lambda: state(),
  "torch_module": lambda: module().state_dict(),
  "torch_training": training_run,
  "torch_wrapped": lambda: {"state_dict": {"module.a": torch.arange(4.0)}, "arch": "vit_base"},
  "torch_model_state_dict": lambda: {"model_state_dict": {"a": torch.arange(3.0)}, "step": 1},
  "torch_ema": lambda: {"model_ema": {"a": torch.arange(2.0)}, "epoch": 1},
}


def expected(value):
  for name in ("model", "state_dict", "model_state_dict", "model_ema"):
    value = value[name] if name in value else value
  as_float = lambda t: t.float() if t.is_floating_point() else t  # noqa: E731
  return {k: as_float(t.detach()).contiguous().numpy() for k, t in value.items()}


if __name__ == "__main__":
  for name, make in FILES.items():
    value = make()
    torch.save(value, HERE / f"{name}.pth")
    torch.save(value, HERE / f"{name}_legacy.pth", _use_new_zipfile_serialization=False)
    np.savez_compressed(HERE / f"{name}.npz", **expected(value))
