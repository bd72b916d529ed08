"""Checkpoints of a run: orbax files, a digest of what they hold, and the newest intact one.

    <directory>/<step>/state    every array of the train state
    <directory>/<step>/meta     the numbers beside it, as json, and the digest of `state`

orbax writes under a temporary name and renames, so a killed run leaves no half checkpoint under
a step's name. A disk may still lose or flip bytes: what is read back must have the digest that
was written, else the checkpoint counts as damaged and the one before it is used.
"""

from __future__ import annotations

import errno
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from peft_jax.files import digest
from peft_jax.tree import flat, nest

PART = ".orbax-checkpoint-tmp"  # in the name of a step that is still being written


def open(directory, keep):
  """An orbax manager over `directory` (created; half-written steps are removed).

  keep: how many of the newest checkpoints stay on disk.
  """
  directory = epath.Path(directory)
  if "://" not in str(directory):
    directory = directory.resolve()
  options = ocp.CheckpointManagerOptions(
    preservation_policy=ocp.checkpoint_managers.LatestN(keep),
    cleanup_tmp_directories=True,
  )
  return ocp.CheckpointManager(directory, options=options)


def half_written(directory):
  """Steps whose writing was interrupted, from the names left in `directory`."""
  directory = epath.Path(directory)
  names = [path.name for path in directory.iterdir()] if directory.exists() else []
  return sorted(int(name.partition(".")[0]) for name in names if PART in name)


def named(tree):
  """{"train/san/...": NumPy copy} of any pytree of arrays; equal for equal structures."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf) for path, leaf in leaves
  }


def save(manager, step, state, meta):
  """Starts writing `state` (arrays) and `meta` (json) as checkpoint `step`; returns at once.

  The arrays are copied first, so they may be donated afterwards. Raises OSError (ENOSPC) when
  the disk is full, for this checkpoint or for the one before it.
  """
  leaves = named(state)
  meta = {**meta, "digest": digest(leaves)}
  with _disk_errors(manager.directory):
    manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(nest(leaves)), meta=ocp.args.JsonSave(meta)
      ),
      force=True,
    )


def wait(manager):
  """Returns when every checkpoint is on disk; raises as `save`."""
  with _disk_errors(manager.directory):
    manager.wait_until_finished()


def restore(manager, like, say=print):
  """(step, state, meta) of the newest intact checkpoint; None when there is none at all.

  like: a state of the same structure; the arrays come back as NumPy arrays, bit for bit.
  say: gets one sentence for each damaged checkpoint; these are renamed to damaged-<step> once
    an intact one is found, so that their steps can be written again.
  Raises ValueError when there are checkpoints and all are damaged, or when an intact one was
  made by another model or other methods.
  """
  damaged = []
  for step in sorted(manager.all_steps(), reverse=True):
    try:
      found = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
      )
      leaves, meta = flat(found["state"]), found["meta"]
      if digest(leaves) != meta["digest"]:
        raise ValueError("its contents do not have the digest written beside them")
    except Exception as error:  # any failure to read is the same finding: not usable
      say(f"checkpoint {step} is damaged ({_first_line(error)}); trying the one before it")
      damaged.append(step)
      continue
    state = _as(like, leaves, step)
    for bad in damaged:
      _set_aside(manager, bad)
    return step, state, meta
  if damaged:
    raise ValueError(
      f"All checkpoints in {manager.directory} are damaged (steps "
      f"{', '.join(map(str, damaged))}); choose another --workdir, or delete this folder to "
      "start again."
    )
  return None


def _as(like, leaves, step):
  """The arrays of `leaves` in the structure of `like`."""
  wanted = jax.tree_util.tree_flatten_with_path(like)[0]
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in wanted]
  for name, (_, leaf) in zip(names, wanted, strict=True):
    here = leaves[name].shape if name in leaves else "nothing"
    if here != np.shape(leaf):
      raise ValueError(
        f"Checkpoint {step} holds {here} for {name}, this run needs {np.shape(leaf)}; it was "
        "made by another program version. Choose another --workdir."
      )
  return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in names])


def _set_aside(manager, step):
  """Renames a damaged step's folder, and makes the manager forget it."""
  folder = manager.directory / str(step)
  aside = manager.directory.parent / f"damaged-{step}"
  if aside.exists():
    aside.rmtree()
  folder.rename(aside)
  manager.reload()


def _first_line(error):
  text = (str(error).splitlines() or [""])[0]
  return text if len(text) < 120 else text[:117] + "..."


def mute_late_writes():
  """Keeps the storage library from printing a traceback for each write that a full disk left over.

  When one array cannot be written the failure is raised (see `save`) and the library's event loop
  is closed; the writes still under way in its threads then find no loop to report to. For programs
  that end there: the filter stays for the rest of the process.
  """
  report = sys.unraisablehook

  def hook(unraisable):
    if str(unraisable.exc_value) != "Event loop is closed":
      report(unraisable)

  sys.unraisablehook = hook


class _disk_errors:
  """Turns the storage library's wording of a full disk into an OSError."""

  def __init__(self, path):
    self.path = path

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    text = str(error)
    if error is not None and ("No space left" in text or "os_error_code='28'" in text):
      raise OSError(errno.ENOSPC, "No space left on device", str(self.path)) from error
