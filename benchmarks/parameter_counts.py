"""Parameter counts on ViT-B/16 beside the percentages that the papers print.

    python benchmarks/parameter_counts.py            # prints the table, half a minute
    python benchmarks/parameter_counts.py --write    # writes benchmarks/parameter_counts.md

"modules" is counted from this project's methods by shapes. The percentages are means over the tasks
of a suite, backbone without head (85,798,656) below, the mean head above; the printed ones are of
GPS, SAN, SPT and VPT. What is not reproduced is explained in the last column.
"""

import argparse
import functools
import pathlib

from peft_jax import count, models
from peft_jax.data import tasks
from peft_jax.methods import (
  SAN,
  SSF,
  VPT,
  Adapter,
  AdaptFormer,
  Bias,
  Full,
  Linear,
  LoRA,
  MLPHead,
  Norm,
  Partial,
)
from peft_jax.models.shapes import images
from peft_jax.sites import sites
from peft_jax.train import fgvc, vtab
from peft_jax.tuned import Tuned

FILE = pathlib.Path(__file__).with_suffix(".md")
FGVC = {  # classes
  "cub_200_2011": 200, "nabirds": 555, "oxford_flowers": 102, "stanford_dogs": 120,
  "stanford_cars": 196,
}
QKV = dict(sites=".*/attn/(q|k|v)", share=("q", "k", "v"))

# Label: (method, printed for VTAB-1k, printed for FGVC, what to make of it).
ROWS = {
  "full": (Full(), "100", "100", "they print 100, the head not counted"),
  "linear": (Linear(), "0.04 SPT, 0.05 GPS", "0.21 GPS, 0.12 SPT",
             "0.12 is a mean head with 55 classes for NABirds, which has 555"),
  "bias": (Bias(), "0.16 GPS, 0.13 SPT", "0.33 GPS, 0.13 SPT", "0.13 fits no count with a head"),
  "norm": (Norm(), "", "", "V-PETL Bench, without percentages"),
  "partial-1": (Partial(), "8.30 SPT", "8.38 SPT",
                "8.305 without the final norm; 8.38 is NABirds with 55 classes again"),
  "MLP-3": (MLPHead(layers=3), "1.42 SPT", "1.50 SPT", "1.50 is NABirds with 55 classes again"),
  "SSF": (SSF(), "0.28 SAN", "0.45 SAN", ""),
  "SAN, resize": (SAN(), "0.28 SAN", "0.45 SAN", "SAN's table repeats the column of SSF"),
  "SAN, base": (SAN(variant="base"), "0.28 SAN", "0.45 SAN",
                "the same; the script also holds 55,296 numbers that it never uses"),
  "LoRA-8 on qkv": (LoRA(rank=8, **QKV), "0.23 SPT", "0.55 SPT", "0.23 repeats Adapter-8"),
  "LoRA-16 on qkv": (LoRA(rank=16, **QKV), "0.69 SPT", "0.90 SPT", "0.69 is without the head"),
  "Adapter-8": (Adapter(width=8), "0.23 SPT", "0.39 SPT", ""),
  "Adapter-32": (Adapter(width=32), "0.71 SPT", "0.95 SPT", "neither fits width 32"),
  "Adapter, D/8": (Adapter(reduction=8), "", "", "VPT prints 2.12 for 100 classes"),
  "AdaptFormer-16": (AdaptFormer(width=16), "0.36 SPT", "0.44 SPT",
                     "0.36 is width 16 without the head; 0.44 fits neither width"),
  "AdaptFormer-64": (AdaptFormer(width=64), "0.36 SPT", "0.44 SPT", "see width 16"),
  "VPT-deep": (lambda p: VPT(length=p), "0.70 GPS, 1.14 SPT", "0.99 SAN, 0.98 SPT",
               "lengths per task; 1.14 is the Structured group; FGVC is of the whole model: 0.98"),
  "VPT-shallow": (lambda p: VPT(length=p, deep=False), "0.13 SAN", "0.29 SAN",
                  "lengths per task; 0.29 is not theirs on FGVC"),
}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
  text = table()
  if parser.parse_args().write:
    FILE.write_text(text)
  print(text, end="")


def table():
  """The table, as Markdown."""
  lines = [
    "| | modules | % without head | VTAB-1k, % | printed | FGVC, % | printed | |",
    "| --- | ---: | ---: | ---: | --- | ---: | --- | --- |",
  ]
  for label, (method, on_vtab, on_fgvc, remark) in ROWS.items():
    suites = [suite(method, task) for task in ("vtab", "fgvc")]
    numbers = sorted({c["trained"] - c["head"] for counts in suites for c in counts})
    shown = [f"{n:,}" for n in numbers] if len(numbers) == 1 else [
      f"{numbers[0]:,} to {numbers[-1]:,}"
    ]
    bare = mean(count.percentages(c)["without_head"] for c in suites[0])
    vtab_mean, fgvc_mean = (mean(c["percent"] for c in counts) for counts in suites)
    lines.append(f"| {label} | {shown[0]} | {bare:.3f} | {vtab_mean:.3f} | {on_vtab} "
                 f"| {fgvc_mean:.3f} | {on_fgvc} | {remark} |")
  return "\n".join(lines) + "\n"


def suite(method, name):
  """What `count` gives for every task of a suite; MLP-3's hidden layers count as modules."""
  if name == "vtab":
    classes = {task.name: task.num_classes for task in tasks.VTAB}
    lengths = vtab.PROMPTS
  else:
    classes, lengths = FGVC, fgvc.PROMPTS
  found = []
  for task, number in classes.items():
    one = method
    if callable(method):
      deep = method(1).deep
      one = method(lengths[task][0 if deep else 1])
    found.append(counted(one, number))
  return found


@functools.cache
def of_ten(method):
  """`count` on ViT-B/16 with a head for ten classes."""
  model = models.create("vit_b16", num_classes=10, **method.builds)
  return count.count(Tuned(model, (method,), sites(model, images(model))))


def counted(method, classes):
  """The same for another number of classes, for each of which a head has 769 numbers."""
  c = of_ten(method)
  trained = c["trained"] + 769 * (classes - 10)
  percent = 100 * trained / c["backbone_without_head"]
  return {**c, "head": 769 * classes, "trained": trained, "percent": percent}


def mean(values):
  values = list(values)
  return sum(values) / len(values)


if __name__ == "__main__":
  main()
