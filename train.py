"""Train one method on one task:

    python train.py --config=configs/quickstart.py
    python train.py --config=configs/quickstart.py:task=mini_digits --config.methods=ssf,lora
    python train.py --config=configs/quickstart.py --workdir=runs/mine --config.optim.lr=5e-3

Run the same command again to go on with a stopped run. Exit codes: 0 finished, 1 a value that
cannot work, 2 the command line, 3 a file or folder, 4 the disk is full, 5 the loss is not finite,
130 interrupted. A traceback means a bug.
"""

import errno
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from peft_jax import mistakes
from peft_jax.train import checkpoint, loop, memory
from peft_jax.train import config as config_lib

CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py or FILE.py:key=value,key=value")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of this run; default runs/<its parts>")


def main(argv):
  del argv
  logging.set_verbosity(logging.FATAL)  # the storage library logs what it raises as well
  checkpoint.mute_late_writes()
  memory.keep()
  try:
    loop.run(CONFIG.value, WORKDIR.value)
  except loop.NotFiniteError as error:
    return stop(error, 5)
  except OSError as error:
    return stop(said(error), 4 if error.errno == errno.ENOSPC else 3)
  except ValueError as error:
    if not mistakes.on_purpose(error):
      raise
    return stop(error, 1)
  except KeyboardInterrupt:
    return stop("interrupted; the same command goes on from the last checkpoint.", 130)
  return 0


def said(error):
  """An operating system's error as a sentence that says what to do."""
  if error.errno is None:  # raised with a sentence of its own
    return error
  what = f"{error.strerror} ({error.filename})" if error.filename else error.strerror
  if error.errno == errno.ENOSPC:
    return f"{what}: make room and run the same command again; saved checkpoints are intact."
  return f"{what}: choose another --workdir, or mend this path and its permissions."


def stop(sentence, code):
  live = "\n" if sys.stdout.isatty() else ""  # the progress line has no end yet
  print(f"{live}train.py: {sentence}", file=sys.stderr)
  return code


if __name__ == "__main__":
  app.run(main, flags_parser=config_lib.parse_flags)
