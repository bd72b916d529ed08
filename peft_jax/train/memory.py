"""What a CPU does with the memory that a step frees."""

import ctypes
import sys


def keep():
  """Makes glibc keep freed memory for the next step instead of giving it back; a no-op elsewhere.

  For the whole process, hence for programs to call, before JAX makes its threads. A step's
  temporaries are one large block: by default glibc maps it anew each step and the system zeroes
  its pages. The quickstart's step on two cores: 0.48 s instead of 0.62, for a larger peak of memory
  (benchmarks/step_cost.py --time --keep-memory=jax and =none). malloc(3): no chunk is mapped
  on its own (M_MMAP_MAX = 0), the heap is never trimmed (M_TRIM_THRESHOLD = -1), and there is one
  heap (M_ARENA_MAX = 1).
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
  if mallopt is not None:
    for option, value in ((-4, 0), (-1, -1), (-8, 1)):
      mallopt(option, value)
