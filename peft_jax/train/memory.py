"""What a CPU does with the memory that a step frees."""

import ctypes
import sys


def keep():
  """Makes glibc keep freed memory for the next step instead of giving it back; a no-op elsewhere.

  A step's temporaries are one large block. By default glibc maps it for each step and the system
  zeroes its pages anew: 11 to 28 % of a step on two cores (benchmarks/README.md), against a peak
  of memory about 1.4 times as high. malloc(3): no chunk is mapped on its own (M_MMAP_MAX = 0),
  the heap is never trimmed (M_TRIM_THRESHOLD = -1), and there is one heap (M_ARENA_MAX = 1).
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
  if mallopt is not None:
    for option, value in ((-4, 0), (-1, -1), (-8, 1)):
      mallopt(option, value)
