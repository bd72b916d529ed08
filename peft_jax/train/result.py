"""The end of a run: the adapter file, the merged weights, result.json, and a line on each."""

from __future__ import annotations

import json
import time

import jax
import numpy as np

from peft_jax import adapter_file, files, versions
from peft_jax.count import count
from peft_jax.loaded import Loaded
from peft_jax.methods import entries
from peft_jax.partition import fixed
from peft_jax.train import log
from peft_jax.train import step as steps
from peft_jax.tree import flat
from peft_jax.tuned import join

PACKAGES = ("peft_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def finish(config, workdir, parallel, parts, state, meta):
  """Writes adapter, merged weights and, last of all, result.json; returns what it holds."""
  begun = time.monotonic()
  split = parts.eval_split.name
  trained = jax.device_get(steps.outcome(state))
  tuned, variables = entries.filed(parts.tuned), join(trained, parts.frozen)
  variables = entries.packed(parts.tuned, variables, join(parts.train, parts.frozen)["params"])
  about = {"tuned": tuned, "base": parts.base} | adapter_file.of_run(config, parts.dataset)
  own, frozen = tuned.split(variables)
  adapter_file.save(workdir / "adapter.safetensors", join(own, fixed(frozen)), **about)
  result = {
    "task": config.task,
    "model": config.model.name,
    "methods": list(config.methods),
    "seed": config.seed,
    "train_split": parts.train_split.name,
    "eval_split": split,
    f"{split}_accuracy": meta["last"]["accuracy"],
    f"{split}_loss": meta["last"]["loss"],
    f"{split}_correct": meta["last"]["correct"],
    f"{split}_count": meta["last"]["count"],
    f"{split}_per_class": meta["last"]["per_class"],
    f"best_epoch_{split}_accuracy": meta["best"]["accuracy"],
    "best_epoch": meta["best"]["epoch"],
    "steps": parts.total,
    "parameters": count(parts.tuned),
    "trained_sha256": files.digest(flat(trained)),
    "weights": {
      "name": parts.base.name,
      "source": parts.base.source,
      "sha256": parts.base.sha256,
      "fingerprint": parts.base.fingerprint,
    },
    "data_fingerprint": meta["data"],
    "config": json.loads(config.to_json()),
    "versions": {**versions.installed(*PACKAGES), "commit": versions.commit()},
    "hardware": {
      "platform": parallel.devices[0].platform,
      "device": parallel.devices[0].device_kind,
      "devices": len(parallel.devices),
      "processes": jax.process_count(),
    },
  }
  if config.merge:
    loaded = Loaded(tuned, variables, adapter_file.header(**about))
    path = workdir / "merged.safetensors"
    result["merged_max_difference"] = merge(path, loaded, parts.eval_split)
  result["seconds"] = meta["seconds"] + time.monotonic() - begun
  log.write_json(workdir / "result.json", result)
  return result


def merge(path, loaded, split):
  """Writes the merged weights; the largest difference they make to logits of real images."""
  merged = jax.device_get(loaded.merged())
  adapter_file.save_merged(path, merged, loaded.header)
  some = split.images(np.arange(min(64, len(split))))
  difference, largest = loaded.merging_error(some, merged)
  print(
    f"merged weights: logits of {len(some)} {split.name} images differ by at most "
    f"{difference:.2g} (largest logit {largest:.3g})"
  )
  return difference


def describe(config, parts, parallel):
  """One line on what is about to be trained; another where the learning rate is never reached."""
  n = count(parts.tuned)
  optim = config.optim
  note = ""
  if optim.warmup_epochs + optim.lag >= optim.epochs:
    note = f"\nnote: warm-up takes all {optim.epochs} epochs, so optim.lr is never reached"
  device = parallel.devices[0]
  return (
    f"{'+'.join(config.methods)} on {config.model.name} ({parts.base.name}), {config.task} with "
    f"{len(parts.train_split)} images, {n['trained']:,} trained numbers ({n['percent']:.2f} % of "
    f"the backbone), {len(parallel.devices)} x {device.device_kind}{note}"
  )


def summary(result):
  """One line with the numbers of a finished run."""
  split = result["eval_split"]
  return (
    f"{split} accuracy {100 * result[f'{split}_accuracy']:.2f} % after the last epoch "
    f"({result[f'{split}_correct']} of {result[f'{split}_count']}; best epoch "
    f"{100 * result[f'best_epoch_{split}_accuracy']:.2f} %), "
    f"{result['parameters']['trained']:,} trained numbers, {result['seconds']:.0f} s"
  )
