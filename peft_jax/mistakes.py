"""Which errors are sentences for the user, and which are bugs."""

import pathlib
import traceback


def on_purpose(error):
  """Whether this package raised `error` itself; a ValueError from elsewhere is a bug."""
  raised = traceback.extract_tb(error.__traceback__)[-1].filename
  return pathlib.Path(__file__).parent in pathlib.Path(raised).absolute().parents
