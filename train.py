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
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from peft_jax.train import config as config_lib
from peft_jax.train import loop

CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py or FILE.py:key=value,key=value")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of this run; default runs/<its parts>")


def main(argv):
  del argv
  logging.set_verbosity(logging.FATAL)  # storage libraries report what is raised here anyway
  try:
    loop.run(CONFIG.value, WORKDIR.value)
  except loop.NotFiniteError as error:
    return stop(error, 5)
  except OSError as error:
    return stop(error, 4 if error.errno == errno.ENOSPC else 3)
  except ValueError as error:
    if not raised_here(error):
      raise
    return stop(error, 1)
  except KeyboardInterrupt:
    return stop("interrupted; run the same command again to go on.", 130)
  return 0


def raised_here(error):
  """Whether this project raised `error` on purpose; otherwise it is a bug."""
  return "peft_jax" in traceback.extract_tb(error.__traceback__)[-1].filename


def stop(sentence, code):
  print(f"\ntrain.py: {sentence}", file=sys.stderr)
  return code


if __name__ == "__main__":
  app.run(main, flags_parser=config_lib.parse_flags)
