"""Which versions made a file: of the installed packages, and the commit of this source."""

import importlib.metadata
import pathlib
import subprocess


def installed(*packages):
  """{package: its version}; "unknown" for one that is run from its source."""
  found = {}
  for name in packages:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "unknown"
  return found


def commit():
  """The git commit of this package's source, with "-dirty" when changed; None outside git."""
  here = pathlib.Path(__file__)
  git = ["git", "-C", str(here.parent)]
  describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
  try:
    tracked = subprocess.run([*git, "ls-files", here.name], capture_output=True, text=True)
    found = subprocess.run(describe, capture_output=True, text=True)
  except OSError:
    return None
  return found.stdout.strip() or None if tracked.stdout else None
