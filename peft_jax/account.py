"""What a run trains and costs, from its config alone: no weights, no images, no arrays."""

from __future__ import annotations

import dataclasses

import jax

from peft_jax import adapter_file, data, explain, models, partition, statistics, weights
from peft_jax.count import count
from peft_jax.methods import entries
from peft_jax.sites import NoSiteError, sites
from peft_jax.train import choosing
from peft_jax.train import step as steps
from peft_jax.tuned import Tuned


@dataclasses.dataclass(frozen=True)
class Account:
  """What a run trains and costs, all exact but for the FLOPs.

  trained: numbers trained, the head's `head` included; backbone: its numbers without head.
  forward, tuned_forward: FLOPs of the model on one batch, without and with the methods.
  step: FLOPs of one training step (forward, backward, optimizer), recomputation included.
    FLOPs are XLA's own count (cost_analysis of the lowered program, elementwise operations
    included); None for a scan whose methods do not fit the unrolled model.
  file: bytes of the adapter file, without class names that only the folder of the task's images
    gives.
  """

  tuned: Tuned
  batch: int
  trained: int
  head: int
  backbone: int
  forward: float | None
  tuned_forward: float | None
  step: float | None
  file: int

  def __str__(self):
    def percent(count):
      return f"{100 * count / self.backbone:.3f} %"

    def flops(count):
      if count is None:
        return "not known for these sites under a scan"
      each = count / self.batch
      return f"{count / 1e9:,.3f} GFLOP for {self.batch} images, {each / 1e9:,.3f} each"

    without = self.trained - self.head
    return "\n".join(
      [
        explain.table(self.tuned, every=True),
        "",
        f"backbone         {self.backbone:,} numbers without the head",
        f"trained          {self.trained:,} with the head, {percent(self.trained)} of the backbone",
        f"                 {without:,} without the head, {percent(without)} of the backbone",
        f"forward          {flops(self.forward)}",
        f"tuned forward    {flops(self.tuned_forward)}",
        f"training step    {flops(self.step)}",
        f"adapter file     {self.file:,} bytes",
      ]
    )


def account(config):
  """The Account of a run with this (resolved) config; no weights, no images, no arrays.

  Raises what a run would: NoSiteError where a method's pattern selects nothing. What a method
  trains that only a choice tells is read from config.selection; ValueError where that is unset.
  """
  task = _task(config)
  model = models.create(num_classes=task.num_classes, **config.model)
  tuned = _tuned(model, config)
  counts = count(tuned)
  filed = entries.filed(tuned)
  train, frozen = filed.split(filed.shapes)
  held = partition.join(train, partition.fixed(frozen)) | statistics.start(tuned.table)
  unnamed = weights.Base(
    name=config.weights,
    source="",
    sha256="" if config.weights == "random" else "0" * 64,
    fingerprint="0" * 64,
  )
  about = adapter_file.of_run(config, task)
  forward, tuned_forward, step = _flops(config, model)
  return Account(
    tuned=tuned,
    batch=config.batch_size,
    trained=counts["trained"],
    head=counts.get("head", 0),
    backbone=counts["backbone_without_head"],
    forward=forward,
    tuned_forward=tuned_forward,
    step=step,
    file=adapter_file.size(held, tuned=filed, base=unnamed, **about),
  )


def _task(config):
  """What has the num_classes and class_names of the config's task."""
  if config.task not in data.OUTSIDE:
    return data.tasks.find(config.task)
  return data.open(
    config.task, root=config.data.root, size=config.model.image_size, resize=config.data.resize
  )


def _tuned(model, config):
  return Tuned(model, choosing.explained(config), sites(model, models.images(model)))


def _flops(config, model):
  """FLOPs of the model, of the tuned model and of a training step on one batch.

  XLA counts the body of a loop once, so a scan is counted as its unrolled equivalent.
  """
  model = model.clone(loop={"scan": "python", "scan_remat": "remat"}.get(model.loop, model.loop))
  try:
    tuned = _tuned(model, config)
  except NoSiteError:
    return None, None, None
  images = models.images(model, config.batch_size)
  batch = models.batch(model, config.batch_size)

  def step(variables, batch):
    train, frozen = tuned.split(variables)
    tx = steps.optimizer(tuned, train, config.optim, steps_per_epoch=1)
    take = steps.training_step(tuned, tx, config)
    return take(steps.start(train, tx, config.ema, stats), frozen, batch)

  stats = statistics.start(tuned.table)
  plain = {"params": tuned.shapes["params"]} | stats
  programs = [(model.apply, plain, images), (tuned.apply, tuned.shapes | stats, images)]
  programs.append((step, tuned.shapes, batch))
  return tuple(jax.jit(f).lower(*args).cost_analysis()["flops"] for f, *args in programs)
