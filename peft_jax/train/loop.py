"""A whole run: from a config to a folder with metrics, an adapter file and a result.

    config.json       the config, everything explicit
    parameters.txt    where what is trained sits
    metrics.jsonl     training and evaluation rows: a function of (config, seed)
    progress.jsonl    speed and time
    checkpoints/      what a restart goes on from
    selection.safetensors  of gps and spt: what they chose to train
    adapter.safetensors  the trained variables;  merged.safetensors with config.merge
    result.json       written last: its presence means that the run is finished

Running again in the same folder goes on from the newest intact checkpoint. The metrics, the
adapter and the result's numbers are the same bits however often a run was killed.
"""

from __future__ import annotations

import collections
import json
import time

import jax
import numpy as np
from etils import epath

from peft_jax import data, files, methods, models, statistics, weights
from peft_jax.keys import key
from peft_jax.partition import fixed
from peft_jax.sites import sites
from peft_jax.train import checkpoint, choosing, evaluate, feed, log, shard
from peft_jax.train import step as steps
from peft_jax.train.config import differing, flatten, resolve
from peft_jax.train.result import describe, finish, summary
from peft_jax.tree import flat
from peft_jax.tuned import Tuned, join


class NotFiniteError(ArithmeticError):
  """The loss or its gradient became infinite or undefined."""


Parts = collections.namedtuple(
  "Parts",
  "dataset train_split eval_split base tuned train frozen stats tx rates steps_per_epoch total",
)
Opened = collections.namedtuple(
  "Opened", "dataset train_split eval_split model params base table"
)


def run(config, workdir=None, devices=None):
  """Trains what `config` asks for in `workdir`, or goes on with it; returns the result dict.

  workdir: a local path or one that epath knows; None takes `default_workdir`.
  devices: those to use; None takes all.
  Raises ValueError and OSError for what a user can mend, NotFiniteError when training diverges.
  """
  config = resolve(config)
  workdir = epath.Path(workdir or default_workdir(config))
  parallel = shard.parallel(config.parallel, devices)
  shard.check_batch(config.batch_size, parallel.devices)
  result = open_workdir(workdir, config)
  if result is not None:
    print(f"{workdir} is finished: {summary(result)}")
    return result
  parts = prepare(config, workdir, parallel)
  log.write(workdir / "parameters.txt", f"{parts.tuned}\n")
  print(f"{workdir}: {describe(config, parts, parallel)}", flush=True)
  half = checkpoint.half_written(workdir / "checkpoints")
  if half:
    print(f"checkpoint {half[-1]} was only half written when the run stopped; it is not used")
  with checkpoint.open(workdir / "checkpoints", config.checkpoint.keep) as manager:
    state, meta = train(config, workdir, parallel, parts, manager)
  result = finish(config, workdir, parallel, parts, state, meta)
  print(f"{workdir}: {summary(result)}")
  return result


def default_workdir(config):
  """runs/<task>-<model>-<methods>-s<seed>"""
  return f"runs/{config.task}-{config.model.name}-{'+'.join(config.methods)}-s{config.seed}"


def open_workdir(workdir, config):
  """Makes the folder ready for `config`; the result if the run is finished already, else None.

  Raises ValueError naming the differing keys when it holds a run with another config.
  """
  now = json.loads(config.to_json())
  stored, finished = workdir / "config.json", workdir / "result.json"
  steps_there = workdir / "checkpoints"
  begun = finished.exists() or (steps_there.exists() and any(steps_there.iterdir()))
  if begun and stored.exists():
    there = json.loads(stored.read_text())
    if differences := differing(flatten(there), flatten(now)):
      raise ValueError(
        f"{workdir} holds a run with another config ({'; '.join(differences)}); "
        "choose another --workdir, or give the same config to go on with it."
      )
    return json.loads(finished.read_text()) if finished.exists() else None
  workdir.mkdir(parents=True, exist_ok=True)
  log.write_json(stored, now)
  return None


def opened(config):
  """Data, model, weights and sites of a resolved config."""
  dataset = data.open(
    config.task, root=config.data.root, size=config.model.image_size, resize=config.data.resize
  )
  train_split = dataset.split(config.data.train_split or dataset.train_split)
  eval_split = dataset.split(config.data.eval_split or dataset.eval_split)
  if both := set(train_split.keys) & set(eval_split.keys):
    raise ValueError(
      f"{len(both)} images of data.eval_split={eval_split.name} are among those of "
      f"data.train_split={train_split.name}; choose two of {', '.join(dataset.splits)} that share "
      "none, such as --config.data.train_split="
      f"{next(iter(dataset.splits))} --config.data.eval_split={dataset.eval_split}."
    )
  model = models.create(num_classes=dataset.num_classes, **config.model)
  params, base = weights.load(
    config.weights, model, key=key(config.seed, "weights"), head=config.head_init
  )
  table = sites(model, models.images(model))
  return Opened(dataset, train_split, eval_split, model, params, base, table)


def prepare(config, workdir=None, parallel=None):
  """Data, model, weights, methods and optimizer of a resolved config.

  workdir: where a method that chooses what it trains keeps its choice; None keeps it nowhere.
  parallel: the devices it chooses with; None takes one.
  """
  dataset, train_split, eval_split, model, params, base, table = opened(config)
  parallel = parallel or shard.parallel("jit", jax.devices()[:1])
  built, chosen = choosing.choose(config, workdir, parallel, dataset, train_split, model, params,
                                  base, table)
  tuned = Tuned(model, built, table)
  variables = {"params": params, **tuned.init(key(config.seed, "methods"), params)}
  for collection, rows in chosen.items():
    variables = choosing.written(tuned, variables, collection, rows)
  trained, frozen = tuned.split(variables)
  per_epoch = data.steps_per_epoch(config.batch_size, len(train_split))
  groups = set(jax.tree.leaves(tuned.labels(trained)))
  asked = {method.collection for method in methods.build(config)}  # SPT may place none of them
  for group, rate in config.optim.group_lr.items():
    if rate is not None and group not in groups | asked:
      raise ValueError(
        f"optim.group_lr.{group} is set, but this run trains {', '.join(sorted(groups))} only."
      )
  return Parts(
    dataset=dataset,
    train_split=train_split,
    eval_split=eval_split,
    base=base,
    tuned=tuned,
    train=trained,
    frozen=frozen,
    stats=statistics.start(tuned.table),
    tx=steps.optimizer(tuned, trained, config.optim, per_epoch),
    rates=steps.rates_of(config.optim, groups, per_epoch),
    steps_per_epoch=per_epoch,
    total=per_epoch * (config.optim.epochs + config.optim.cooldown_epochs),
  )


def train(config, workdir, parallel, parts, manager):
  """(state, meta) after the last step, having written metrics and checkpoints."""
  state, meta, first = begin(config, workdir, parts, manager)
  state, frozen = parallel.place(state), parallel.place(parts.frozen)
  take_step = parallel.step(
    steps.training_step(parts.tuned, parts.tx, config, parallel.axis),
    compiler_options(config, parallel),
  )
  batches = feed.feed(
    parts.train_split,
    config.batch_size,
    config.seed,
    parallel,
    config.data.resident_mb,
    data.view.of(config.data),
  )
  assess = assessor(config, parallel, parts)
  board = log.Board(workdir / "tensorboard", config.log.tensorboard, first)
  progress = log.Progress(parts.total, config.batch_size, first)
  begun, earlier = time.monotonic(), meta["seconds"]

  def record(row, **more):
    log.append(workdir / "metrics.jsonl", row)
    board.add(row | more)

  for done in range(first + 1, parts.total + 1):
    state = take_step(state, frozen, batches(done - 1))
    last = done == parts.total
    epoch = done / parts.steps_per_epoch
    due = {
      "log": last or done % config.log.every_steps == 0,
      "eval": last or epoch % config.eval.every_epochs == 0,
      "save": last or done % config.checkpoint.every_steps == 0,
    }
    if done == first + 1:
      jax.block_until_ready(state)
      progress.start(done)
    if not any(due.values()):
      continue
    check_finite(state, parallel, manager, config)
    if due["log"]:
      row, state = training_row(state, parallel, parts, done)
      speed = {"images_per_second": progress.rate(done)}
      record(row, **speed)
      progress.show(done, epoch, row["train_loss"])
      seconds = earlier + time.monotonic() - begun
      log.append(workdir / "progress.jsonl", {"step": done, "seconds": seconds, **speed})
    if due["eval"]:
      with progress.pause():
        meta = assessed(meta, assess(parallel.whole(state), parallel.whole(frozen)), epoch)
      if not np.isfinite(meta["last"]["loss"]):
        raise not_finite(f"The loss on {parts.eval_split.name} is", done, manager, config)
      row = evaluation_row(meta, parts.eval_split.name, done, epoch)
      record(row)
      progress.say("  ".join(f"{name} {_short(value)}" for name, value in row.items()))
    if due["save"]:
      meta = {**meta, "seconds": earlier + time.monotonic() - begun}
      checkpoint.save(manager, done, parallel.whole(state), meta)
  checkpoint.wait(manager)
  board.close()
  return parallel.whole(state), meta


def begin(config, workdir, parts, manager):
  """(state, meta, steps done) to go on from: the newest checkpoint's, or a new run's."""
  state = steps.start(parts.train, parts.tx, config.ema, parts.stats)
  origin = {"weights": parts.base.fingerprint, "data": parts.dataset.fingerprint()}
  if places := flat(fixed(parts.frozen)):
    origin["selection"] = files.digest(places)
  meta = {**origin, "last": None, "best": None, "seconds": 0.0}
  found = checkpoint.restore(manager, state)
  first = 0
  if found:
    first, state, meta = found
    for name, here in origin.items():
      if meta.get(name, here) != here:
        raise ValueError(
          f"The {name} changed since {workdir} was begun (fingerprint {meta[name][:12]} there, "
          f"{here[:12]} now); bring back the earlier {name} or choose another --workdir."
        )
    print(f"going on from the checkpoint of step {first} of {parts.total}")
  for name in ("metrics.jsonl", "progress.jsonl"):
    log.keep_rows(workdir / name, first)
  return state, meta, first


def compiler_options(config, parallel):
  """What makes a GPU give the same bits in every process."""
  wanted = parallel.devices[0].platform == "gpu" and config.deterministic
  if wanted and parallel.how == "pmap":
    raise ValueError(
      "deterministic=True needs parallel='jit': pmap takes no compiler options; set one of them."
    )
  return {"xla_gpu_deterministic_ops": True} if wanted else None


def check_finite(state, parallel, manager, config):
  """Raises NotFiniteError when a step so far had a loss or gradient that is not finite."""
  bad = int(parallel.whole(state["bad"]))
  if bad >= 0:
    raise not_finite("The loss, its gradient or an updated value is", bad + 1, manager, config)


def not_finite(what, step, manager, config):
  """The NotFiniteError of a step, naming the last good checkpoint."""
  checkpoint.wait(manager)
  good = manager.latest_step()
  where = f"the last good checkpoint is that of step {good}" if good else "there is no checkpoint"
  return NotFiniteError(
    f"{what} not finite at step {step}; {where} in {manager.directory}. "
    f"Lower optim.lr (now {config.optim.lr:g}) or set optim.clip (now {config.optim.clip:g})."
  )


def training_row(state, parallel, parts, done):
  """(metrics since the last row, the state with its tally emptied)."""
  tally = jax.device_get(parallel.whole(state["tally"]))
  row = {
    "step": done,
    "epoch": done / parts.steps_per_epoch,
    "train_loss": float(tally["loss"]) / int(tally["seen"]),
    "train_accuracy": int(tally["correct"]) / int(tally["seen"]),
    **{f"lr/{group}": float(f"{rate(done - 1):.7g}") for group, rate in parts.rates.items()},
  }
  return row, {**state, "tally": parallel.place(steps.empty_tally())}


def assessor(config, parallel, parts):
  """A function (state, frozen) -> metrics of the evaluation split, of the average where on."""
  split, limit = parts.eval_split, config.data.resident_mb * 2**20
  options = compiler_options(config, parallel)
  predict = evaluate.predictor(parts.tuned, config.data.normalize, parallel, options)
  images = split.images
  if len(split) * split.size**2 * 3 <= limit:
    images = split.images().__getitem__

  def assess(state, frozen):
    variables = join(steps.outcome(state), frozen)
    return evaluate.evaluate(
      predict, variables, images, split.labels, config.eval.batch_size, parallel
    )

  return assess


def assessed(meta, metrics, epoch):
  """`meta` with the newest evaluation, and the best one so far (reported, never used)."""
  best = meta["best"]
  if best is None or metrics["correct"] > best["correct"]:
    best = {"correct": metrics["correct"], "accuracy": metrics["accuracy"], "epoch": epoch}
  return {**meta, "last": metrics, "best": best}


def evaluation_row(meta, split, done, epoch):
  return {
    "step": done,
    "epoch": epoch,
    f"{split}_accuracy": meta["last"]["accuracy"],
    f"{split}_loss": meta["last"]["loss"],
    f"best_epoch_{split}_accuracy": meta["best"]["accuracy"],
  }


def _short(value):
  return f"{value:.4g}" if isinstance(value, float) else value
