"""python -m peft_jax weights VERB: look into a weights file, or rewrite it.

    inspect FILE               its tensors, layout, SHA-256, and which models they fit
    convert FILE OUT           OUT.npz in our names, OUT.safetensors in timm's, head included;
                               --no-head leaves it out, --dtype=float16 halves the file
"""

import argparse
import re

import numpy as np
from etils import epath

from peft_jax import models, safetensors
from peft_jax.models.presets import PRESETS
from peft_jax.tree import flat
from peft_jax.weights import names, npz, reader
from peft_jax.weights.load import find, fit, translated


def parser():
  made = argparse.ArgumentParser(
    prog="python -m peft_jax weights", description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  verbs = made.add_subparsers(dest="verb", metavar="VERB", required=True)
  what = "weights of any kind: npz, safetensors, torch, onnx, or a name on the hub"
  sub = verbs.add_parser("inspect", help="tensors, layout, SHA-256 and fitting models of a file")
  sub.add_argument("file", metavar="FILE", help=what)
  sub.set_defaults(function=inspect)
  sub = verbs.add_parser("convert", help="write .npz in our names or .safetensors in timm's")
  sub.add_argument("file", metavar="FILE", help=what)
  sub.add_argument("out", metavar="OUT", help="OUT.npz or OUT.safetensors")
  sub.add_argument("--model", help="a model it must fit; its position tables are resized to it")
  sub.add_argument("--no-head", action="store_true", help="leave the head out")
  sub.add_argument("--dtype", choices=("float32", "float16"), default="float32",
                   help="of the numbers in OUT")
  sub.set_defaults(function=convert)
  return made


def main(argv=None):
  """Runs one verb and returns 0; raises ValueError or FileNotFoundError for a user's mistake."""
  args = parser().parse_args(argv)
  args.function(args)
  return 0


def inspect(args):
  file = find(args.file)
  kind, arrays = reader.kind(file), reader.read(file)
  width = max(map(len, arrays), default=0)
  for name in sorted(arrays):
    shape = " x ".join(map(str, arrays[name].shape)) or "scalar"
    print(f"{name:{width}}  {str(arrays[name].dtype):8} {shape}")
  numbers = sum(a.size for a in arrays.values())
  print(f"{file}: {kind}, {len(arrays)} tensors, {numbers:,} numbers, "
        f"{epath.Path(file).stat().length:,} bytes, SHA-256 {npz.sha256(file)}")
  layout, prefix = names.find(arrays)
  print(f"layout: {layout or 'unknown'}" + (f" under {prefix!r}" if prefix else ""))
  if layout:
    ours, skipped = names.translate(arrays)
    for line in skipped:
      print(f"skipped: {line}")
    print("models: " + ("; ".join(nearest(ours)) or "none is near"))


def body(shapes):
  """The part of {path: shape} that tells models apart: no head, no table of an image size."""
  return {path: tuple(shape) for path, shape in shapes.items()
          if not re.match(r"head|pos_embed|pre_logits|mask_token", path)
          and not path.endswith("/rel_pos")}


def nearest(arrays, count=3):
  """Sentences on the presets whose parameters are most like `arrays`, the best first."""
  have = body({path: a.shape for path, a in arrays.items()})
  first = next((shape[-1] for path, shape in sorted(have.items()) if path.endswith("kernel")
                and re.match("patch_embed|stem/conv", path)), None)
  found, seen = [], []
  for name, preset in PRESETS.items():
    model = models.create(name, num_classes=0)
    # The width of the first layer is an option of the model, or the first of a tuple of widths.
    options = (getattr(model, field) for field in model.__dataclass_fields__)
    if preset in seen or first not in (o[0] if isinstance(o, tuple) and o else o for o in options):
      continue
    seen.append(preset)
    want = body(shapes_of(model))
    same = sum(have.get(path) == shape for path, shape in want.items())
    if 2 * same < len(want):
      continue
    found.append((len(want.keys() | have.keys()) - same, len(want) - same, name, len(want)))
  return [f"{name} fits" if other == 0 else
          f"{name} but for {missing} of its {n} tensors and {other - missing} of the file's"
          for other, missing, name, n in sorted(found)[:count]]


def shapes_of(model):
  return {path: leaf.shape for path, leaf in flat(models.parameters(model)).items()}


def convert(args):
  if not args.out.endswith((".npz", ".safetensors")):
    raise ValueError(f"{args.out} must end in .npz (our names) or .safetensors (timm's).")
  file = find(args.file)
  arrays = reader.read(file)
  conv_mlp = any(a.ndim == 4 and re.search(r"(mlp\.fc|pwconv)1\.weight$", name)
                 for name, a in arrays.items())
  done, skipped = [], []
  if args.model:
    model = models.create(args.model, num_classes=0)
    arrays, skipped = translated(file, arrays, getattr(model, "heads", None))
    heads = {path: a for path, a in arrays.items() if path.startswith("head")}
    rest = {path: a for path, a in arrays.items() if path not in heads}
    done, more = fit(rest, shapes_of(model), file, model, "bicubic_aa")
    arrays, skipped = rest | heads, [*skipped, *more]
    conv_mlp = conv_mlp or names.has_conv_mlp(args.model)
  else:
    arrays, skipped = translated(file, arrays)
    for path in sorted(arrays):
      if "." in path or path == "mask_token":
        why = names.reason(names.SKIPPED, path)
        if not why:
          raise ValueError(f"{file} holds {path}, which no model here has; say which model it "
                           "should become with --model.")
        skipped.append(f"{path}: {why}")
        del arrays[path]
  if args.no_head:
    arrays = {path: a for path, a in arrays.items() if not path.startswith("head")}
  arrays = {path: rounded(path, a, args.dtype) for path, a in arrays.items()}
  if args.out.endswith(".npz"):
    npz.write(args.out, arrays)
  else:
    safetensors.write(args.out, names.to_timm(arrays, conv_mlp))
  for line in done:
    print(f"changed: {line}")
  for line in skipped:
    print(f"skipped: {line}")
  print(f"{args.out}: {len(arrays)} tensors of ours, "
        f"{sum(a.size for a in arrays.values()):,} numbers, SHA-256 {npz.sha256(args.out)}")


def rounded(path, array, dtype):
  """Floating-point numbers as `dtype`; ValueError where one is too large for it."""
  if not np.issubdtype(array.dtype, np.floating):
    return array
  with np.errstate(over="ignore"):
    new = array.astype(dtype)
  if np.isfinite(array).all() and not np.isfinite(new).all():
    raise ValueError(f"{path} holds {np.abs(array).max():.3g}, more than {dtype} can hold: leave "
                     "--dtype=float32.")
  return new
