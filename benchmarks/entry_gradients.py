"""When the gradient of chosen entries is cheaper than that of the whole kernel: GPS's form="auto".

    python benchmarks/entry_gradients.py           # under a minute on a core
    python benchmarks/entry_gradients.py --tokens=6304

Milliseconds of the gradient of k entries of each neuron of one linear layer, [tokens, fan_in] x
[tokens, fan_out], by the loop of methods.sparse, and of the whole kernel: the median of --rounds
runs of each, in turn. The last column is the k at which they meet, in a straight line between
neighbours or behind the last two, and as a share of the inputs.
"""

import argparse
import statistics
import time

import jax

from peft_jax.methods import sparse

LAYERS = {"qkv, proj": (768, 768), "fc1": (768, 3072), "fc2": (3072, 768)}
KS = (1, 2, 5, 10, 20, 40)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tokens", default=1576, type=int, help="197 an image of ViT-B/16")
  parser.add_argument("--rounds", default=7, type=int)
  args = parser.parse_args()
  print("| layer | kernel | " + " | ".join(f"k = {k}" for k in KS) + " | meet at |")
  print("| --- |" + " ---: |" * (len(KS) + 2))
  for name, (fan_in, fan_out) in LAYERS.items():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (args.tokens, fan_in))
    dy = jax.random.normal(keys[1], (args.tokens, fan_out))
    forms = {0: (jax.jit(lambda x, dy: x.T @ dy), (x, dy))}
    for k in KS:
      inputs = jax.random.randint(keys[2], (k, fan_out), 0, fan_in)
      index = sparse.places(inputs, fan_out)
      entries = jax.jit(lambda x, dy, index: sparse.entry_gradients(x, dy, index, "neuron"))
      forms[k] = (entries, (x, dy, index))
    times = {k: [] for k in forms}
    for _ in range(args.rounds + 1):  # the first compiles
      for k, (function, arguments) in forms.items():
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times[k].append(1e3 * (time.perf_counter() - begun))
    median = {k: statistics.median(all_[1:]) for k, all_ in times.items()}
    # Between the two k whose times lie around the kernel's, or behind the last.
    after = next((i for i, k in enumerate(KS) if i and median[k] > median[0]), len(KS) - 1)
    low, high = KS[after - 1], KS[after]
    meet = low + (high - low) * (median[0] - median[low]) / (median[high] - median[low])
    cells = " | ".join(f"{median[k]:.1f}" for k in (0, *KS))
    print(f"| {name} {fan_in} -> {fan_out} | {cells} | {meet:.0f} = 1/{fan_in / meet:.0f} |")


if __name__ == "__main__":
  main()
