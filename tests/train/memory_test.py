"""Freed memory is used again: the second large block costs no page faults."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from peft_jax.train import memory
if sys.argv[1] == "keep":
  memory.keep()
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(2**27, np.uint8)  # 128 MiB, 32768 pages
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_second_block_needs_no_new_pages():
  count = {}
  for how in ("keep", "default"):
    found = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True)
    count[how] = int(found.stdout)
  assert count["default"] > 20 * max(count["keep"], 1), count
