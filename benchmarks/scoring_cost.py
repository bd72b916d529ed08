"""What it costs to choose: one batch of scores, in operations and bytes.

    python benchmarks/scoring_cost.py                 ViT-B/16, batch 8: about a minute on a core
    python benchmarks/scoring_cost.py --batch=32

The counts are XLA's own, of the compiled programs; nothing is allocated. A batch is that of the
training script: B images, of which the contrastive loss makes two views. Beside each score stand

    plain   the gradient of the cross-entropy of the same kernels, over all of its views at once
    full    a step of full fine-tuning (AdamW, every parameter) with the same B images

Operations are limited to 1.3 times the former's, memory (arguments, temporaries and outputs that
take no argument's place) to 1.2 times the latter's.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh

from peft_jax import data, models, statistics
from peft_jax.keys import key
from peft_jax.methods import GPS, Full
from peft_jax.selection import roles, scores, squares
from peft_jax.sites import select, sites
from peft_jax.train import config as config_lib
from peft_jax.train import step as steps
from peft_jax.tree import nest
from peft_jax.tuned import Tuned

CLASSES = 100
OPERATIONS, MEMORY = 1.3, 1.2  # limits


@dataclasses.dataclass(frozen=True)
class Cost:
  """operations; peak: bytes; of programs that run one after the other."""

  operations: float
  peak: int


def cost(programs):
  """The Cost of [(function, its arguments as shapes)], whose first argument is donated."""
  operations, peak = 0.0, 0
  for function, arguments in programs:
    compiled = jax.jit(function, donate_argnums=0, keep_unused=True).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    operations += compiled.cost_analysis()["flops"]
    peak = max(peak, memory.argument_size_in_bytes + memory.temp_size_in_bytes
               + memory.output_size_in_bytes - memory.alias_size_in_bytes)
  return Cost(operations, peak)


def settings():
  config = config_lib.default()
  config.data.normalize = "inception"
  return config


def kernels(model):
  """The paths of the kernels that GPS scores."""
  table = sites(model, models.images(model))
  return tuple(f"{path}/kernel" for path in select(table, ".*", GPS.kinds, head=Tuned.head))


def totals(wanted):
  return {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in wanted.items()}


def views(model, batch):
  """The programs that make the two views of a batch."""
  def view(images):
    return data.augment(images, key(0, "score view 0"), "contrast")

  return [(view, (models.batch(model, batch)["image"],))] * 2


def gps(model, batch, loss):
  """The programs of one batch of gradient sums, from its views."""
  wanted, rest = scores.parted(models.parameters(model), kernels(model))
  images, labels = models.batch(model, batch).values()
  step = jax.ShapeDtypeStruct((), jnp.int32)
  programs, left = [], None
  for function in scores.passes(model, settings(), loss):
    arguments = (totals(wanted), left, wanted, rest, [images] * 2, labels, step)
    programs.append((function, arguments))
    left = jax.eval_shape(function, *arguments)[1]
  return programs


def spt(model, batch):
  """The program of one group of squared gradients, as large as the batch."""
  paths = tuple(roles.roles(sites(model, models.images(model))))
  wanted, rest = scores.parted(models.parameters(model), paths)
  images, labels = models.batch(model, batch).values()
  group = {"image": images, "label": labels, "place": labels, "weight": jnp.zeros(batch)}
  group = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in group.items()}
  total = {path: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for path, x in wanted.items()}
  mesh = Mesh(jax.devices()[:1], (squares.AXIS,), axis_types=(AxisType.Auto,))
  features = model.clone(num_classes=0)
  add = squares.adder(features, model.num_classes, mesh, settings(), drawn=False)
  return [(add, (total, wanted, rest, group))]


# By name: (model, batch) -> programs, and the views of an image. A score joins by one row.
SCORES = {
  "gps contrast": (lambda model, batch: views(model, batch) + gps(model, batch, "contrast"), 2),
  "gps cross_entropy": (lambda model, batch: gps(model, batch, "cross_entropy"), 1),
  "spt squares": (spt, 1),
}


def plain(model, batch):
  """The gradient of the cross-entropy of the same kernels, added to a sum."""
  wanted, rest = scores.parted(models.parameters(model), kernels(model))
  features = model.clone(num_classes=0)

  def add(total, wanted, rest, batch):
    images = data.normalize(batch["image"], "inception")

    def loss_of(wanted):
      x = features.apply({"params": nest(rest | wanted)}, images)
      logits = x.astype(jnp.float32) @ jnp.ones((x.shape[-1], model.num_classes))
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    return scores.added(total, jax.grad(loss_of)(wanted))

  return [(add, (totals(wanted), wanted, rest, models.batch(model, batch)))]


def full(model, batch):
  """A step of full fine-tuning."""
  tuned = Tuned(model, (Full(),), sites(model, models.images(model)))
  train, frozen = tuned.split(tuned.shapes)
  config = settings()
  tx = steps.optimizer(tuned, train, config.optim, steps_per_epoch=100)
  state = jax.eval_shape(lambda: steps.start(train, tx, 0.0, statistics.start(tuned.table)))
  return [(steps.training_step(tuned, tx, config), (state, frozen, models.batch(model, batch)))]


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="vit_b16")
  parser.add_argument("--batch", default=8, type=int, help="images")
  args = parser.parse_args()
  model = models.create(args.model, num_classes=CLASSES)
  print(f"{args.model}, {model.image_size} pixels, batch {args.batch}, float32")
  print("| | GFLOP | of plain | GiB | of full |\n| --- | ---: | ---: | ---: | ---: |")
  row = "| {} | {:.0f} | {} | {:.2f} | {} |".format
  step, alike = cost(full(model, args.batch)), {}
  for name, (programs, views) in SCORES.items():
    own = cost(programs(model, args.batch))
    if views not in alike:
      alike[views] = cost(plain(model, views * args.batch))
    more, larger = own.operations / alike[views].operations, own.peak / step.peak
    print(row(name, own.operations / 1e9, f"{more:.3f}", own.peak / 2**30, f"{larger:.3f}"))
    if more > OPERATIONS or larger > MEMORY:
      print(f"NOT MET  {name}: {more:.3f} of {OPERATIONS}, {larger:.3f} of {MEMORY}")
  for views, own in alike.items():
    name = f"plain, {views * args.batch} images"
    print(row(name, own.operations / 1e9, "", own.peak / 2**30, ""))
  print(row("full", step.operations / 1e9, "", step.peak / 2**30, ""))


if __name__ == "__main__":
  main()
