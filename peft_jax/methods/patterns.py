"""Numbers that differ from site to site, as HF PEFT's rank_pattern has them: "regex=number".

An entry holds where its regular expression matches the end of a module path, from a name on:
"fc1=4", "blocks_0/attn/q=2", "blocks_(0|1)/.*=16". The first entry that fits a path counts.
"""

import math
import re


def at(path, patterns, default):
  """The number of the first of `patterns` that fits `path`, as text; `default` for none."""
  for pattern in patterns:
    regex, _, number = pattern.rpartition("=")
    if _fits(regex, path):
      return number
  return default


def check(asker, field, patterns, kind):
  """Raises ValueError unless `patterns` is a tuple of "regex=number", numbers of `kind` above 0."""
  if not isinstance(patterns, tuple):
    raise ValueError(f"{asker}: {field}={patterns!r} is no tuple, such as ('fc1=4',).")
  for pattern in patterns:
    try:
      regex, _, number = pattern.rpartition("=")
      re.compile(regex)
      good = bool(regex) and 0 < kind(number) < math.inf
    except (AttributeError, ValueError, re.error):
      good = False
    if not good:
      raise ValueError(
        f"{asker}: {field} has {pattern!r}, which is not of the form regex=number, such as 'fc1=4'."
      )


def check_used(asker, field, patterns, paths):
  """Raises ValueError for the first of `patterns` that fits none of `paths`."""
  for pattern in patterns:
    if not used(pattern, paths):
      raise ValueError(
        f"{asker}: {field} has {pattern!r}, which matches the end of none of the {len(paths)} "
        f"selected sites, such as {next(iter(paths))}."
      )


def used(pattern, paths):
  """Whether one of `patterns` fits any of `paths`."""
  return any(_fits(pattern.rpartition("=")[0], path) for path in paths)


def _fits(regex, path):
  return re.fullmatch(rf"(.*/)?({regex})", path) is not None
