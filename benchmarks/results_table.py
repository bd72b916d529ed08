"""The README's results tables: every way to learn a task from 1000 images, on real weights.

    python benchmarks/results_table.py --tasks=mini_clevr_count      # DINOv2 ViT-S/14; resumes
    python benchmarks/results_table.py --backbone=tiny_vit           # three tasks
    python benchmarks/results_table.py --tasks=all --seeds=3         # all seven: for a GPU
    python benchmarks/results_table.py --render                      # what has been run so far

Two processes with one core and different --tasks or --rows each are faster than one with two.

Rows: logistic regression on raw pixels and on frozen features (the linear probe), then every method
on DINOv2 ViT-S/14 at 70 px or on another --backbone, and SAN on the same network with random
weights. Protocol, the same for every row: choose on train800 -> val200 (probes: the L2 strength;
others: the learning rate, by runs of --select-epochs epochs), then train on all 1000 images, for
--epochs epochs, and read the test split once, after the last epoch. The probes have three seeds,
the rest --seeds. What has finished is never repeated: its result lies in --results, which belongs
to the repository; a stopped run goes on from --runs.
"""

import argparse
import functools
import json
import pathlib
import statistics
from typing import NamedTuple

import jax
import probe as probes

from peft_jax import data, models, weights
from peft_jax.data import tasks as task_table
from peft_jax.train import config as config_lib
from peft_jax.train import log, loop, memory

TASKS = ("mini_clevr_count", "mini_texture", "mini_fashion")
PIXELS = 32  # side of the images that the raw-pixel probe sees


class Row(NamedTuple):
  """rates: learning rates to choose from, the head's too; options: of the config, by dotted key."""

  label: str
  methods: tuple
  rates: tuple = (1e-3, 4e-3)
  options: dict = {}  # noqa: RUF012 - never changed
  weights: str | None = None


ROWS = {
  "norm": Row("norm", ("norm",)),
  "bias": Row("bias", ("bias",)),
  "mlp": Row("MLP-3 head", ("mlp",)),
  "partial": Row("partial-1", ("partial",), (3e-4, 1e-3)),
  "vpt_shallow": Row("VPT, 10 shallow prompts", ("vpt",), (4e-3, 1.6e-2), {"vpt.deep": False}),
  "vpt_deep": Row("VPT, 10 deep prompts", ("vpt",), (4e-3, 1.6e-2), {"vpt.deep": True}),
  "adapter": Row("Adapter-8", ("adapter",)),
  "adaptformer": Row("AdaptFormer-64", ("adaptformer",)),
  "ia3": Row("IA3", ("ia3",), (4e-3, 1.6e-2)),
  "lora": Row("LoRA-8, q k v proj fc1 fc2", ("lora",)),
  "dora": Row("DoRA-8, q k v proj fc1 fc2", ("dora",)),
  "ssf": Row("SSF", ("ssf",)),
  "ssf_lora": Row("SSF and LoRA-8", ("ssf", "lora")),
  "san": Row("SAN", ("san",)),
  "gps": Row("GPS, k = 1", ("gps",)),
  "gps_random": Row("neuron-random, k = 1", ("gps",), options={"gps.score": "random"}),
  "gps_magnitude": Row("magnitude, k = 1", ("gps",), options={"gps.score": "magnitude"}),
  "gps_net": Row("GPS at net level, k = 1", ("gps",), options={"gps.level": "net"}),
  "spt_lora": Row("SPT-LoRA-4, 20,000 numbers", ("spt", "lora"), options={
    "spt.budget": 20_000.0, "lora.rank": 4, "lora.alpha": 4.0}),
  "spt_adapter": Row("SPT-Adapter-4, 20,000 numbers", ("spt", "adapter"), options={
    "spt.budget": 20_000.0, "adapter.width": 4, "adapter.act": "gelu",
    "adapter.sites": r".*/(attn/(q|k|v|proj)|mlp/fc[12])", "adapter.parallel": ("proj",)}),
  "san_random": Row("SAN, random weights", ("san",), weights="random"),
  "full": Row("full", ("full",), (3e-5, 1e-4)),
}
PROBES = {"pixels": f"raw pixels ({PIXELS} px), linear", "linear": "frozen features, linear"}


def main():
  args = arguments()
  if not args.render:
    memory.keep()
    for task in args.tasks:
      for row in args.rows:
        if row in PROBES:
          probe(args, task, row)
        else:
          tune(args, task, row)
  print(table(args))


def arguments():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--backbone", default="dinov2_vits14")
  parser.add_argument("--tasks", default=",".join(TASKS), help="names, or 'all'")
  parser.add_argument("--rows", default=",".join((*PROBES, *ROWS)), help="in the table's order")
  parser.add_argument("--seeds", default=1, type=int)
  parser.add_argument("--runs", default="runs/table", type=pathlib.Path)
  results = pathlib.Path(__file__).parent / "results"
  parser.add_argument("--results", default=results, type=pathlib.Path)
  parser.add_argument("--epochs", default=10, type=int)
  parser.add_argument("--select-epochs", default=3, type=int)
  parser.add_argument("--size", type=int, help="pixels; 70 for DINOv2, else the backbone's")
  parser.add_argument("--render", action="store_true", help="print the table, run nothing")
  args = parser.parse_args()
  every = [task.name for task in task_table.MINI_VTAB]
  args.tasks = every if args.tasks == "all" else args.tasks.split(",")
  args.rows = args.rows.split(",")
  args.runs, args.results = args.runs / args.backbone, args.results / args.backbone
  if args.size is None:
    dino = args.backbone == "dinov2_vits14"
    args.size = 70 if dino else models.preset(args.backbone).image_size
  return args


def tune(args, task, row):
  """Chooses the learning rate of a row and trains it with every seed."""
  chosen = choose(args, task, row)
  for seed in range(args.seeds):
    config = configure(args, task, row, chosen, args.epochs)
    config.seed = seed
    run(args, config, task, row, f"lr{chosen:g}-s{seed}")


def choose(args, task, row):
  """The learning rate with the best accuracy on val200; ties go to the lower loss."""
  results = {}
  for rate in ROWS[row].rates:
    config = configure(args, task, row, rate, args.select_epochs)
    config.data.train_split, config.data.eval_split = "train800", "val200"
    results[rate] = run(args, config, task, row, f"choose-lr{rate:g}")
  return max(results, key=lambda r: (results[r]["val200_accuracy"], -results[r]["val200_loss"]))


def run(args, config, task, row, name):
  """The result of a run, from the results if it is there."""
  file = args.results / task / row / f"{name}.json"
  if file.exists():
    return json.loads(file.read_text())
  result = loop.run(config, args.runs / task / row / name)
  here = f"{pathlib.Path(__file__).parents[1]}/"  # where a checkout lies is nobody's business
  result["weights"]["source"] = result["weights"]["source"].removeprefix(here)
  file.parent.mkdir(parents=True, exist_ok=True)
  log.write_json(file, result)
  return result


def configure(args, task, row, rate, epochs):
  _, methods, _, options, spec = ROWS[row]
  config = config_lib.default().unlock()
  config.task, config.methods, config.weights = task, methods, spec
  config.model.name, config.model.image_size = args.backbone, args.size
  config.update_from_flattened_dict(options)
  if spec == "random" and args.backbone == "dinov2_vits14":
    config.model.layer_scale = 1.0  # DINOv2's initial 1e-5 would leave the blocks mute
  config.batch_size = 32
  config.optim.lr, config.optim.warmup_lr = rate, rate / 10
  config.optim.epochs, config.optim.warmup_epochs = epochs, 1
  config.eval.every_epochs, config.eval.batch_size = epochs, 100
  config.checkpoint.every_steps = 100
  config.log.tensorboard = False
  return config.lock()


def probe(args, task, row):
  """Logistic regression on pixels or frozen features; writes one result.json per seed."""
  folder = args.results / task / row
  if all((folder / f"s{seed}.json").exists() for seed in range(3)):
    return
  features, size = probes.pixels, PIXELS
  if row == "linear":
    preset = models.preset(args.backbone)
    model = models.create(args.backbone, num_classes=0, image_size=args.size)
    params, _ = weights.load(preset.weights, model, key=jax.random.key(0))
    features = functools.partial(probes.features, model, params, preset.normalize)
    size = args.size
  for result in probes.probe(data.open(task, size=size), features, range(3)):
    folder.mkdir(parents=True, exist_ok=True)
    log.write_json(folder / f"s{result['seed']}.json", result)
    test, strength = result["test_accuracy"], result["strength"]
    print(f"{task} {row} s{result['seed']}: {100 * test:.2f} % (strength {strength:g})", flush=True)


def table(args):
  """Markdown: a row per method that was run, a column per task; mean +- deviation, percent."""
  lines = ["| | " + " | ".join(args.tasks) + " |", "| --- |" + " --- |" * len(args.tasks)]
  for row in args.rows:
    label = PROBES.get(row) or ROWS[row].label
    cells = [cell(args.results / task / row) for task in args.tasks]
    if set(cells) != {"-"}:
      lines.append(f"| {label} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def cell(folder):
  """The result of the finished runs of one row on one task; those that chose are left out."""
  files = sorted(file for file in folder.glob("*s?.json") if not file.name.startswith("choose"))
  scores = [100 * json.loads(file.read_text())["test_accuracy"] for file in files]
  if not scores:
    return "-"
  if len(scores) == 1:
    return f"{scores[0]:.1f}"
  return f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f} ({len(scores)})"


if __name__ == "__main__":
  main()
