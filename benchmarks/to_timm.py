"""What was tuned here, used in timm: logits of both, for three backbones and three methods.

    pip install torch timm
    python benchmarks/to_timm.py                       # about two minutes
    python benchmarks/to_timm.py --models=convnext_atto --methods=ssf

For each pair: weights and method drawn at random, every number of them moved, written as a weights
file and an adapter file, merged by `python -m peft_jax merge --timm`, loaded by timm with
load_state_dict(strict=True), and compared on random images in float32.
"""

import argparse
import contextlib
import io
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import __main__ as program
from peft_jax import adapter_file, models, safetensors, weights
from peft_jax.methods import METHODS
from peft_jax.sites import sites
from peft_jax.tuned import Tuned, join

SIZES = {"vit": 64, "swin": 112, "convnext": 96}  # pixels
CLASSES = 5
ALLOWED = 1e-4


def moved(tree, seed, share=0.2):
  """`tree` with normal noise added to every leaf; matrices get it at their own scale."""
  draw = np.random.default_rng(seed)

  def move(leaf):
    leaf = np.asarray(leaf)
    scale = leaf.std() if leaf.ndim > 1 and leaf.std() > 0 else 1.0
    return jnp.asarray(leaf + share * scale * draw.normal(size=leaf.shape), jnp.float32)

  return jax.tree.map(move, tree)


def size_of(name):
  """Side of the images for timm's model of this name, in pixels."""
  return next(size for family, size in SIZES.items() if name.startswith(family))


def timm_model(name):
  """timm's model of this name, with a head of CLASSES, at `size_of(name)` pixels."""
  import timm

  takes_size = {} if name.startswith("convnext") else {"img_size": size_of(name)}
  return timm.create_model(name, num_classes=CLASSES, **takes_size).eval()


def in_torch(model, images):
  """The logits of a torch model for images [B, S, S, 3]."""
  import torch

  with torch.no_grad():
    return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def tuned_files(name, method, folder):
  """(adapter file, its weights file, images, logits) of a model tuned at random."""
  size = size_of(name)
  model = models.create(name, num_classes=CLASSES, image_size=size)
  params, _ = weights.load("random", model, key=jax.random.key(0))
  base_file = folder / f"{name}.npz"
  weights.save(base_file, moved(params, 0))
  params, base = weights.load(base_file, model, key=jax.random.key(0))
  tuned = Tuned(model, (METHODS[method](),), sites(model, models.images(model)))
  train, frozen = tuned.split({"params": params, **tuned.init(jax.random.key(1), params)})
  train = moved(train, 1)
  file = folder / f"{name}-{method}.safetensors"
  adapter_file.save(
    file, train, tuned=tuned, base=base, model=name, resize="bicubic_pil",
    normalize=models.preset(name).normalize, class_names=[f"class {i}" for i in range(CLASSES)],
  )
  draw = np.random.default_rng(2)
  images = draw.normal(size=(4, size, size, 3)).astype(np.float32)
  plain = jax.jit(model.apply)({"params": params}, images)
  logits = jax.jit(tuned.apply)(join(train, frozen), images)
  assert abs(plain - logits).max() > 0.1, "the method changed nothing"
  return file, base_file, images, np.asarray(logits)


def in_timm(name, file, images):
  """Logits that timm's model of this name gives with the state dict in `file`."""
  import torch

  model = timm_model(name)
  arrays, _ = safetensors.read(file)
  state = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
  model.load_state_dict(state, strict=True)
  return in_torch(model, images)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  names = "vit_tiny_patch16_224,swin_tiny_patch4_window7_224,convnext_atto"
  parser.add_argument("--models", default=names)
  parser.add_argument("--methods", default="san,ssf,lora")
  args = parser.parse_args()
  worst = 0.0
  with tempfile.TemporaryDirectory() as folder:
    for name in args.models.split(","):
      for method in args.methods.split(","):
        file, base, images, logits = tuned_files(name, method, pathlib.Path(folder))
        merged = f"{folder}/merged.safetensors"
        with contextlib.redirect_stdout(io.StringIO()) as said:
          code = program.main(["merge", str(file), f"--base={base}", f"--out={merged}", "--timm"])
        if code:
          raise SystemExit(said.getvalue())
        difference = float(abs(in_timm(name, merged, images) - logits).max())
        worst = max(worst, difference)
        print(f"{name} {method}: logits differ by at most {difference:.2g} "
              f"(largest {abs(logits).max():.3g})", flush=True)
  if worst > ALLOWED:
    raise SystemExit(f"a difference of {worst:.2g} is more than {ALLOWED:g}")


if __name__ == "__main__":
  main()
