"""What the features of the tiny pretrained backbones are worth on tasks they were not trained for.

    python benchmarks/tiny_transfer.py                  # minutes on two cores

Linear probes (probe.py) on the frozen features of each backbone, of the same network with random
weights, and on raw pixels (32 x 32): accuracy on the test split, in percent; the L2 strength is
chosen on train800 -> val200. ConvNeXt's layer scale is 1 in both. Prints a table; a pretrained
backbone that is not 10 points above the random one and above the pixels on two tasks is an error.
"""

import argparse
import statistics
import sys

import jax
import probe as probes

from peft_jax import data, models, weights

BACKBONES = ("tiny_vit", "tiny_swin", "tiny_convnext")
TASKS = ("mini_texture", "mini_clevr_count", "mini_fashion")
PIXELS = 32  # side of the images that the raw-pixel probe sees
MARGIN = 10.0  # points above random weights


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--backbones", nargs="+", default=BACKBONES)
  parser.add_argument("--tasks", nargs="+", default=TASKS)
  parser.add_argument("--seeds", type=int, default=3, help="of the probes and the random weights")
  args = parser.parse_args()

  seeds = range(args.seeds)
  found = {task: row(task, args.backbones, seeds) for task in args.tasks}
  names = list(next(iter(found.values())))
  print("| | " + " | ".join(found) + " |\n|" + " --- |" * (len(found) + 1))
  for name in names:
    print(f"| {name} | " + " | ".join(f"{found[task][name]:.1f}" for task in found) + " |")
  good = {name: sum(wins(found[task], name) for task in found) for name in args.backbones}
  print("; ".join(f"{name} wins {count} of {len(found)}" for name, count in good.items()))
  return 0 if min(good.values()) >= min(2, len(found)) else 1


def row(task, backbones, seeds):
  """{what is probed: mean test accuracy} on one task."""
  pixels = probes.probe(data.open(task, size=PIXELS), probes.pixels, seeds)
  accuracy, dataset = {"raw pixels": mean(pixels)}, data.open(task, size=64)
  for name in backbones:
    accuracy[name] = mean(
      probes.probe(dataset, features(name, models.preset(name).weights, 0), seeds)
    )
    random = [
      probes.probe(dataset, features(name, "random", seed), [seed]) for seed in seeds
    ]
    accuracy[f"{name}, random weights"] = mean(result for one in random for result in one)
  return accuracy


def features(name, spec, seed):
  """images -> [N, D] by the backbone `name` with the weights `spec`."""
  model = models.create(name, num_classes=0)
  params, _ = weights.load(spec, model, key=jax.random.key(seed))
  normalize = models.preset(name).normalize
  return lambda images: probes.features(model, params, normalize, images)


def mean(results):
  return 100 * statistics.mean(result["test_accuracy"] for result in results)


def wins(accuracy, name):
  """Whether the pretrained backbone beats its random self by MARGIN, and the raw pixels."""
  rivals = accuracy[f"{name}, random weights"] + MARGIN, accuracy["raw pixels"]
  return accuracy[name] >= rivals[0] and accuracy[name] > rivals[1]


if __name__ == "__main__":
  sys.exit(main())
