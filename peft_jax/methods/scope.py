"""Scopes: which of the backbone's own parameters are trained; no variables of their own.

Every scope trains the head as well. Parameter counts on ViT-B/16 without the head: full
85,798,656; bias 102,912 (BitFit, Zaken et al. 2022, arXiv:2106.10199); norm 38,400.
"""

from __future__ import annotations

import dataclasses

from peft_jax.method import Method
from peft_jax.sites import NORM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full(Method):
  """Full fine-tuning: every parameter."""

  def trains(self, table, paths):
    return frozenset(paths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Method):
  """Linear probing: nothing but the head."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bias(Method):
  """Bias tuning: every bias of the backbone, those of norms included."""

  def trains(self, table, paths):
    return frozenset(path for path in paths if path.rpartition("/")[2] == "bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm(Method):
  """Norm tuning: scale and bias of every normalisation layer, found by module type."""

  def trains(self, table, paths):
    return norm_paths(table) & paths


def norm_paths(table):
  """The flat paths in `params` of every normalisation layer's parameters."""
  return frozenset(
    f"{path}/{name}"
    for path, site in table.items()
    if issubclass(site.kind, NORM)
    for name, _ in site.params
  )
