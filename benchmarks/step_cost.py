"""What one training step costs: operations, bytes and, with --time, seconds.

    python benchmarks/step_cost.py                      ViT-B/16, batch 8: counts, nothing allocated
    python benchmarks/step_cost.py --time --depth 4     seconds, beside PyTorch and HF PEFT

The counts are XLA's own, of the compiled program: F is the operations of the plain model's
forward pass, a step is that of peft_jax.train, value, gradient and AdamW update of the trained
variables; the frozen ones are an argument and are not returned. README.md says how to read them.
"""

import argparse
import dataclasses
import importlib.util
import math
import os
import subprocess
import sys
import time
from statistics import median

# A worker of --time holds itself to some cores; jax counts them when it is imported.
if "STEP_COST_THREADS" in os.environ and hasattr(os, "sched_setaffinity"):
  cores = sorted(os.sched_getaffinity(0))[: int(os.environ["STEP_COST_THREADS"])]
  os.sched_setaffinity(0, cores)

import jax
import jax.numpy as jnp

from peft_jax import models, statistics
from peft_jax.methods import (
  GPS,
  IA3,
  SAN,
  SSF,
  VPT,
  Adapter,
  AdaptFormer,
  Bias,
  DoRA,
  Full,
  Linear,
  LoRA,
  MLPHead,
  Norm,
  Partial,
  sparse,
)
from peft_jax.methods.entries import Entries
from peft_jax.selection import places
from peft_jax.sites import sites
from peft_jax.train import config, log, memory
from peft_jax.train import step as steps
from peft_jax.tree import flat
from peft_jax.tuned import Tuned

LAYERS = r".*/(q|k|v|proj|fc1|fc2)"  # the linear layers of a block

METHODS = {
  "full": Full(),
  "linear": Linear(),
  "mlp": MLPHead(layers=3),
  "partial": Partial(k=1),
  "bias": Bias(),
  "norm": Norm(),
  "ssf": SSF(),
  "san": SAN(),
  "lora": LoRA(sites=LAYERS, rank=8),
  "lora_shared": LoRA(sites=LAYERS, rank=8, share=("q", "k", "v")),  # one A for a fused qkv
  "dora": DoRA(sites=LAYERS, rank=8),
  "gps": GPS(),
  "gps_k5": GPS(k=5, form="entries"),
  "gps_k15": GPS(k=15, form="entries"),
  "gps_kernel": GPS(form="kernel"),  # the gradient of whole kernels, then its chosen entries
  "gps_product": GPS(form="product"),  # kernels are not written into, but x times the change added
  "gps_mask": GPS(form="mask"),  # kernels trained with masked updates: the cost of full tuning
  # What SPT trains without its modules: of ViT-B/16's 0.4 M entries each kernel's share.
  "entries_400k": GPS(level="net", k=5, form="entries", biases=False, chosen=(
    ".*/(q|k|v|proj)=2778", ".*/fc[12]=11111")),
  "ia3": IA3(),
  "adapter": Adapter(width=8),
  "adaptformer": AdaptFormer(width=64),
  "vpt": VPT(length=50),
  "vpt_shallow": VPT(length=50, deep=False),  # its prompts pass every layer
}

# The largest step a method may compile to, in units of F.
LIMITS = {
  "gps": 2.12, "gps_k5": 2.15, "entries_400k": 2.4,
  "ssf": 2.08, "san": 2.08, "lora": 2.10, "lora_shared": 2.10,
}  # fmt: skip

# The largest temporaries, in units of those of "gps_mask".
MEMORY = {"gps": 1.1, "gps_k5": 1.1, "gps_k15": 1.25, "gps_kernel": 1.1, "entries_400k": 1.1}

CLASSES = 100


def training_step(tuned, train):
  """(step, state) of peft_jax.train: step(state, frozen, batch) -> state, compiled when lowered.

  AdamW with decay, no augmentation, no moving average. state: a function without arguments.
  """
  defaults = config.default()
  defaults.data.normalize = "inception"
  tx = steps.optimizer(tuned, train, defaults.optim, steps_per_epoch=100)
  step = steps.training_step(tuned, tx, defaults)
  stats = statistics.start(tuned.table)
  return jax.jit(step, donate_argnums=0, keep_unused=True), lambda: steps.start(
    train, tx, 0.0, stats)


# --- counts -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cost:
  """The cost of one compiled step; sizes in bytes.

  trained: number of trained values, the head included.
  ratio: operations of the step over those of the forward pass, every pass of `loops` counted.
  arguments: weights, optimizer state and batch; optimizer: its part of that.
  limit: what `arguments` may be: weights, batch and 4 times the trained values, plus 5 %.
  temporary: what XLA allocates in between. outputs: the new trained values and optimizer state.
  largest_output, largest_trained: the largest array returned, the largest one trained.
  """

  name: str
  trained: int
  ratio: float
  arguments: int
  optimizer: int
  limit: int
  temporary: int
  outputs: int
  largest_output: int
  largest_trained: int

  def failures(self):
    """One sentence for each requirement that is not met."""
    limit = LIMITS.get(self.name)
    checks = (
      (limit is None or self.ratio <= limit, f"the step costs {self.ratio:.3f} F, not {limit}"),
      (self.arguments <= self.limit, f"{self.arguments} bytes of arguments, above {self.limit}"),
      (
        self.optimizer <= 2 * 4 * self.trained + 1024,
        f"{self.optimizer} bytes of optimizer state for {self.trained} trained values",
      ),
      (
        self.outputs <= 3.05 * 4 * self.trained + 4096,
        f"{self.outputs} bytes returned for {self.trained} trained values",
      ),
      (
        self.largest_output <= self.largest_trained,
        f"an array of {self.largest_output} bytes is returned, none that large is trained",
      ),
    )
    return [f"{self.name}: {sentence}" for met, sentence in checks if not met]


def copied(costs):
  """One sentence for each of MEMORY whose temporaries are above its share of the mask form's."""
  temporary = {c.name: c.temporary for c in costs}
  dense = temporary.get("gps_mask", math.inf)
  return [f"{name}: {temporary[name]} temporary bytes, above {share} times {dense}"
          for name, share in MEMORY.items() if temporary.get(name, 0) > share * dense]


def size(tree):
  """Bytes of a tree of arrays or shapes."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def shapes(model, batch):
  """(params, images, batch of the training step) as shapes."""
  return models.parameters(model), models.images(model, batch), models.batch(model, batch)


def forward_operations(model, batch):
  """F, the operations of the plain model's forward pass."""
  params, images, _ = shapes(model, batch)
  forward = jax.jit(lambda params, images: model.apply({"params": params}, images))
  return forward.lower(params, images).compile().cost_analysis()["flops"]


def loops(tuned):
  """Operations of the loops over entries that XLA's count, of one pass each, leaves out."""
  left_out = 0
  for method, chosen in tuned.bound:
    if not isinstance(method, Entries) or method.form == "mask":
      continue
    shapes = {path: leaf.shape for path, leaf in flat(tuned.shapes[method.collection]).items()}
    for path, site in chosen.items():
      shape = shapes.get(f"{path}/value", ())
      how, outputs, n = method.rows(site), math.prod(site.fan_out), math.prod(shape)
      by_entries = method.form == "product" or method.by_entries(site, n)
      if site.is_conv or not shape or how == "input" or not by_entries:
        continue
      shape = (shape[0], n // shape[0])
      ways = [(1, sparse.runs(shape, how))]  # a pass multiplies and adds for the values,
      if method.form == "product":
        ways += [(2, (-(-n // outputs), outputs))]  # and for y and the gradient of x
      tokens = math.prod(site.y) // outputs
      left_out += sum(2 * tokens * times * (passes - 1) * width for times, (passes, width) in ways)
  return left_out


def cost(model, batch, name, forward, method=None):
  """The Cost of a step of METHODS[name], or of `method` under that name; forward: F."""
  method = method or METHODS[name]
  model = model.clone(**method.builds)
  params, images, data = shapes(model, batch)
  tuned = Tuned(model, (method,), sites(model, images))
  train, frozen = tuned.split(tuned.shapes)
  step, start = training_step(tuned, train)
  state = jax.eval_shape(start)
  lowered = step.lower(state, frozen, data)
  compiled = lowered.compile()
  memory = compiled.memory_analysis()
  return Cost(
    name=name,
    trained=sum(leaf.size for leaf in jax.tree.leaves(train)),
    ratio=(compiled.cost_analysis()["flops"] + loops(tuned)) / forward,
    arguments=memory.argument_size_in_bytes,
    optimizer=size(state["opt"]),
    limit=int(1.05 * (size(params) + size(data) + 4 * size(train))),
    temporary=memory.temp_size_in_bytes,
    outputs=memory.output_size_in_bytes,
    largest_output=max(size(leaf) for leaf in jax.tree.leaves(lowered.out_info)),
    largest_trained=max(size(leaf) for leaf in jax.tree.leaves(train)),
  )


def print_costs(forward, costs):
  print(f"forward pass F = {forward / 1e9:.2f} GFLOP")
  print(f"{'':12}{'trained':>12}{'step / F':>10}{'limit':>7}" + f"{'MiB:':>6}" + "".join(
    f"{head:>11}" for head in ("arguments", "limit", "optimizer", "temporary", "outputs")))
  for c in costs:
    sizes = (c.arguments, c.limit, c.optimizer, c.temporary, c.outputs)
    limit = LIMITS.get(c.name, "")
    print(f"{c.name:12}{c.trained:>12,}{c.ratio:>10.3f}{limit:>7}{'':>6}" + "".join(
      f"{n / 2**20:>11.1f}" for n in sizes))
  for sentence in [*(s for c in costs for s in c.failures()), *copied(costs)]:
    print("NOT MET ", sentence)


# --- seconds ------------------------------------------------------------------------------------


def jax_runner(name, model, batch):
  """run() -> None performs one step of METHODS[name], or a forward pass, and waits for it."""
  key = jax.random.key(0)
  model = model.clone(**METHODS[name].builds) if name in METHODS else model
  shape = (batch, model.image_size, model.image_size, 3)
  data = {
    "image": jax.random.randint(key, shape, 0, 256, jnp.int32).astype(jnp.uint8),
    "label": jnp.arange(batch, dtype=jnp.int32) % CLASSES,
  }
  images = data["image"] / 127.5 - 1
  params = jax.jit(model.init)(key, images)["params"]
  if name == "forward":
    forward = jax.jit(lambda params, images: model.apply({"params": params}, images))
    return lambda: jax.block_until_ready(forward(params, images))
  method, table, selected = METHODS[name], sites(model, images), None
  if method.chooses:  # what it trains: any inputs, as many as it says
    method = dataclasses.replace(method, score="random", chosen=())
    selected = places.choose(method, model, params, table, config.default())
    method = places.told(method, selected)
  tuned = Tuned(model, (method,), table)
  variables = {"params": params, **tuned.init(key, params)}
  if selected is not None:
    variables = places.written(tuned, variables, method.collection, selected)
  train, frozen = tuned.split(variables)
  step, start = training_step(tuned, train)
  holder = [start()]

  def run():
    holder[0] = jax.block_until_ready(step(holder[0], frozen, data))

  return run


# What `torch_steps.runner` knows, by the names of METHODS; GPS's forms are one training.
TORCH = {
  **{name: name for name in ("forward", "full", "linear", "bias", "lora", "gps")},
  **dict.fromkeys(("lora_shared",), "lora"),
  **dict.fromkeys(("gps_k5", "gps_k15", "gps_kernel", "gps_product", "gps_mask"), "gps"),
}
NEEDS = {"lora": "peft", "gps": "timm"}  # beside torch
BESIDE = {"gps": "gps_mask"}  # timed in the same rounds


def work(worker, model, batch, threads, keep):
  """Answers every line on stdin with one step's seconds, by the clock and of all cores' work."""
  side, name = worker.split(":")
  if keep in (side, "both"):
    memory.keep()
  if side == "torch":
    import torch_steps  # beside this file

    run = torch_steps.runner(name, model, batch, threads, CLASSES)
  else:
    run = jax_runner(name, model, batch)
  run(), run()
  print("ready", flush=True)
  for _ in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


class Worker:
  """A process that holds one compiled step and runs it when asked; it sleeps in between."""

  def __init__(self, what, arguments, threads):
    environment = {
      **os.environ, "STEP_COST_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    self.process = subprocess.Popen(
      [sys.executable, __file__, "--worker", what, *arguments], env=environment, text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    while (line := self.process.stdout.readline()).strip() != "ready":
      if not line:
        raise RuntimeError(f"the worker {what} stopped with code {self.process.wait()}.")

  def seconds(self):
    """(by the clock, of all cores' work) for one step."""
    self.process.stdin.write("\n")
    self.process.stdin.flush()
    wall, cpu = self.process.stdout.readline().split()
    return float(wall), float(cpu)

  def close(self):
    self.process.stdin.close()
    self.process.wait()


def there(package):
  return importlib.util.find_spec(package) is not None


def time_steps(names, arguments, threads, rounds, beside_torch):
  """One row {name, SIDE: {wall, cpu}, ratio: {SIDE: {wall, cpu}}} for each name.

  Sides: "jax"; "torch", where TORCH has it; the name that BESIDE has. Lists of seconds, one a
  round, which runs all sides; which goes first alternates, and the ratios of jax to the others are
  taken within a round, so that a machine that slows down for a while slows all.
  """
  rows = []
  for name in names:
    workers = {"jax": f"jax:{name}"}
    if name in BESIDE:
      workers[BESIDE[name]] = f"jax:{BESIDE[name]}"
    if beside_torch and name in TORCH and there(NEEDS.get(TORCH[name], "torch")):
      workers["torch"] = f"torch:{TORCH[name]}"
    sides = {side: Worker(worker, arguments, threads) for side, worker in workers.items()}
    row = {"name": name, **{side: {"wall": [], "cpu": []} for side in sides}}
    for i in range(rounds):
      for side in list(sides) if i % 2 == 0 else list(sides)[::-1]:
        wall, cpu = sides[side].seconds()
        row[side]["wall"].append(wall)
        row[side]["cpu"].append(cpu)
    for worker in sides.values():
      worker.close()
    row["ratio"] = {
      side: {clock: [a / b for a, b in zip(row["jax"][clock], row[side][clock], strict=True)]
             for clock in ("wall", "cpu")}
      for side in sides if side != "jax"
    }
    rows.append(row)
    print_time(row)
  return rows


def print_time(row):
  line = f"{row['name']:12}" + "".join(
    f"{side}{median(row[side]['wall']):>8.3f} s (least {min(row[side]['wall']):.3f}, "
    f"cpu {median(row[side]['cpu']):.3f})   "
    for side in ("jax", *row["ratio"]))
  for side, ratio in row["ratio"].items():
    wall = ratio["wall"]
    line += (f"jax / {side} {median(wall):.3f} ({min(wall):.3f} to {max(wall):.3f}), "
             f"cpu {median(ratio['cpu']):.3f}   ")
  print(line.rstrip(), flush=True)


# --- command line -------------------------------------------------------------------------------


def parse(argv):
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--model", default="vit_b16")
  parser.add_argument("--image-size", type=int, help="pixels; the preset's by default")
  parser.add_argument("--depth", type=int, help="number of blocks; the preset's by default")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--methods", default="", help="comma-separated, among " + ", ".join(METHODS))
  parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
  parser.add_argument("--time", action="store_true", help="measure seconds, not counts")
  parser.add_argument("--rounds", type=int, default=7, help="timed steps of each kind")
  parser.add_argument("--threads", type=int, default=min(2, os.cpu_count()))
  parser.add_argument("--no-torch", action="store_true", help="do not time PyTorch")
  parser.add_argument("--keep-memory", choices=("none", "jax", "both"), default="jax",
                      help="whose freed memory glibc keeps for the next step")
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  flags = parser.parse_args(argv)
  unknown = set(filter(None, flags.methods.split(","))) - set(METHODS) - {"forward"}
  if unknown:
    parser.error(f"there is no method {sorted(unknown)[0]!r}; there are {', '.join(METHODS)}.")
  return flags


def main(argv=None):
  flags = parse(argv)
  overrides = {"depth": flags.depth} if flags.depth else {}
  model = models.create(
    flags.model, num_classes=CLASSES, image_size=flags.image_size, **overrides)
  if flags.worker:
    return work(flags.worker, model, flags.batch, flags.threads, flags.keep_memory)
  about = f"{flags.model}, {model.image_size} pixels, {model.depth} blocks, batch {flags.batch}"
  chosen = [name for name in flags.methods.split(",") if name]
  if flags.time:
    names = chosen or ["forward", "full", "bias", "ssf", "san", "lora"]
    arguments = [f"--model={flags.model}", f"--image-size={model.image_size}",
                 f"--depth={model.depth}", f"--batch={flags.batch}", f"--threads={flags.threads}",
                 f"--keep-memory={flags.keep_memory}"]
    both = there("torch") and not flags.no_torch
    print(f"{about}, {flags.threads} threads, float32: seconds a step, median of {flags.rounds}")
    record = {"about": about, "threads": flags.threads, "keep_memory": flags.keep_memory,
              "seconds": time_steps(names, arguments, flags.threads, flags.rounds, both)}
  else:
    names = [name for name in chosen or METHODS if name != "forward"]
    forward = forward_operations(model, flags.batch)
    costs = [cost(model, flags.batch, name, forward) for name in names]
    print(about)
    print_costs(forward, costs)
    record = {"about": about, "forward": forward, "costs": [dataclasses.asdict(c) for c in costs]}
  if flags.json:
    log.write_json(flags.json, record)


if __name__ == "__main__":
  main()
