"""The part of Python's pickle language that torch checkpoints are written in.

A pickle is a program for a small stack machine, and the standard library's machine imports and
calls whatever the program names. This one is written out instead of derived from pickle.Unpickler:
it has no instruction that imports; a name is looked up in tables of this file and otherwise
refused; and its memory is bounded, as every instruction makes at most one small value and their
number is limited. In Unpickler both bounds would depend on the version of Python. Instructions are
those of protocols 2 to 5 (Lib/pickletools.py) without the ones of text, sets, buffers and
extensions.
"""

import dataclasses
import struct

import numpy as np

MOST_STEPS = 300_000  # instructions; a model with its optimizer's state takes about 40,000
MOST_AXES = 32
MARK = object()


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
  """A name the program asked for; nothing was imported."""

  name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
  """A run of `size` numbers of one type, kept elsewhere in the file under `key`."""

  dtype: str
  key: str
  size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
  """shape and strides, in numbers, from `offset` of a storage; inside it, as `tensor` checks."""

  storage: Storage
  offset: int
  shape: tuple
  strides: tuple


class Inert:
  """What stands for an object that is no tensor: it takes any state and does nothing."""

  __slots__ = ()


def tensor(storage, offset, shape, strides, *flags):
  if type(storage) is not Storage:
    raise ValueError("a tensor is made of something that is no storage")
  if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
    raise ValueError("a tensor's shape and strides do not go together")
  if len(shape) > MOST_AXES or not all(type(n) is int and n >= 0
                                       for n in (offset, *shape, *strides)):
    raise ValueError("a tensor's shape, strides or offset are no whole numbers from 0")
  if 0 not in shape:
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if last >= storage.size:
      raise ValueError(f"a tensor of shape {shape} from {offset} with strides {strides} leaves its "
                       f"storage of {storage.size} numbers")
  return Tensor(storage, offset, shape, strides)


def parameter(data, *flags):
  return data


def table(pairs=()):
  return dict(pairs)


def size(numbers=()):
  return tuple(numbers)


def inert(*arguments):
  return Inert()


# What may be called, and what happens instead. numpy's are the scalars (best accuracy, losses)
# beside published models; the last two hold a training run's settings.
CALLS = {
  "torch._utils._rebuild_tensor_v2": tensor,
  "torch._utils._rebuild_tensor": tensor,
  "torch._utils._rebuild_parameter": parameter,
  "torch.nn.parameter.Parameter": parameter,
  "collections.OrderedDict": table,
  "torch.Size": size,
  "numpy.core.multiarray.scalar": inert,
  "numpy._core.multiarray.scalar": inert,
  "numpy.dtype": inert,
  "_codecs.encode": inert,
  "argparse.Namespace": inert,
  "yacs.config.CfgNode": inert,
}
STORAGES = {f"torch.{name}Storage": np.dtype(dtype).str for name, dtype in (
  ("Float", "<f4"), ("Double", "<f8"), ("Half", "<f2"), ("Long", "<i8"), ("Int", "<i4"),
  ("Short", "<i2"), ("Char", "i1"), ("Byte", "u1"), ("Bool", "?"))}
STORAGES["torch.BFloat16Storage"] = "bfloat16"  # no type of NumPy's own


class Machine:
  """Runs the pickles in `data`, one after the other; the bound holds for all together."""

  def __init__(self, data):
    self.data, self.at, self.steps = data, 0, 0
    self.storages = {}  # by key, those of all pickles

  def run(self):
    """The value of the pickle that begins at `self.at`, which moves on to its end.

    The value is made of dict, list, tuple, str, bytes, int, float, bool, None and the classes of
    this file; it may contain itself. Raises ValueError for anything else.
    """
    self.stack, self.memo = [], {}
    while True:
      start, code = self.at, self.take(1)
      self.steps += 1
      if self.steps > MOST_STEPS:
        raise ValueError(f"its pickle has more than {MOST_STEPS} instructions")
      if code not in STEPS:
        raise ValueError(f"instruction {code!r} at byte {start} of its pickle is not supported")
      try:
        STEPS[code](self)
        if code == STOP:
          return self.stack.pop()
      except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"instruction {code!r} at byte {start} of its pickle fails "
                         f"({type(error).__name__})") from None

  def take(self, n):
    if n > len(self.data) - self.at:
      raise ValueError("its pickle is cut off, or too long")
    self.at += n
    return self.data[self.at - n : self.at]

  def number(self, layout):
    return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

  def line(self):
    end = self.data.find(b"\n", self.at, self.at + 200)
    if end < 0:
      raise ValueError("its pickle is cut off within a name")
    return self.take(end + 1 - self.at)[:-1].decode()

  def push(self, value):
    self.stack.append(value)

  def top(self, n):
    """The last n values, taken from the stack as a tuple."""
    if n > len(self.stack) or any(v is MARK for v in self.stack[len(self.stack) - n :]):
      raise IndexError
    values = tuple(self.stack[len(self.stack) - n :])
    del self.stack[len(self.stack) - n :]
    return values

  def marked(self):
    """The values above the last mark, taken from the stack with it."""
    at = len(self.stack) - 1
    while self.stack[at] is not MARK:
      at -= 1
      if at < 0:
        raise IndexError
    values = self.stack[at + 1 :]
    del self.stack[at:]
    return values

  def name(self, module, name):
    name = f"{module}.{name}"
    if name not in CALLS and name not in STORAGES:
      raise ValueError(f"it asks for {name[:80]!r}, which is no part of a file of tensors; nothing "
                       "of it was run")
    self.push(Global(name))

  def call(self, function, arguments):
    if type(function) is not Global or function.name not in CALLS or type(arguments) is not tuple:
      raise ValueError("its pickle calls what is no function")
    self.push(CALLS[function.name](*arguments))

  def build(self):
    self.stack.pop()  # attributes: an OrderedDict's _metadata, a Namespace's arguments
    if type(self.stack[-1]) not in (dict, Inert):
      raise TypeError

  def put(self, items):
    """Keys and values into the table on top of the stack."""
    target = self.stack[-1]
    if type(target) is Inert:
      return
    if type(target) is not dict or len(items) % 2:
      raise TypeError
    for key, value in zip(items[::2], items[1::2], strict=True):
      # Not tuples: the hash of one that holds another twice, and so on, never ends.
      if type(key) not in (str, bytes, int, float, bool, type(None)):
        raise TypeError
      target[key] = value

  def extend(self, items):
    if type(self.stack[-1]) is not list:
      raise TypeError
    self.stack[-1].extend(items)

  def storage(self):
    """For ("storage", type, key, device, size[, None]), as torch names what lies outside."""
    found = self.stack.pop()
    if type(found) is not tuple or len(found) not in (5, 6) or found[0] != "storage":
      raise ValueError("it refers to something that is no storage")
    kind, key, _, length = found[1:5]
    if type(kind) is not Global or kind.name not in STORAGES:
      raise ValueError("it has a storage of an unknown type")
    view = found[5:] not in ((), (None,))  # of torch 0.1
    if view or type(key) is not str or type(length) is not int or length < 0:
      raise ValueError("it has a storage without a plain name and size")
    new = Storage(STORAGES[kind.name], key, length)
    if self.storages.setdefault(key, new) != new:
      raise ValueError(f"its storage {key[:80]!r} comes with two types or sizes")
    self.push(self.storages[key])

  def long(self):
    n = self.number("<B")
    self.push(int.from_bytes(self.take(n), "little", signed=True))

  def version(self):
    if self.number("<B") > 5:
      raise ValueError("its pickle is of an unknown protocol")


def text(layout, encoding="utf-8"):
  return lambda m: m.push(m.take(m.number(layout)).decode(encoding))


def binary(layout):
  return lambda m: m.push(m.take(m.number(layout)))


def remember(place):
  def step(m):
    m.memo[place(m)] = m.stack[-1]
  return step


def plain(layout):
  return lambda m: m.push(m.number(layout))


STOP = b"."
STEPS = {
  STOP: lambda m: None,
  b"\x80": Machine.version,
  b"\x95": lambda m: m.take(8),  # length of a frame
  b"(": lambda m: m.push(MARK),
  b"0": lambda m: m.stack.pop(),
  b"1": lambda m: m.marked(),
  b"N": lambda m: m.push(None),
  b"\x88": lambda m: m.push(True),
  b"\x89": lambda m: m.push(False),
  b"J": plain("<i"), b"K": plain("<B"), b"M": plain("<H"), b"G": plain(">d"),
  b"\x8a": Machine.long,
  b"X": text("<I"), b"\x8c": text("<B"), b"\x8d": text("<Q"),
  b"U": text("<B", "latin1"), b"T": text("<I", "latin1"),  # the strings of Python 2
  b"C": binary("<B"), b"B": binary("<I"), b"\x8e": binary("<Q"),
  b"}": lambda m: m.push({}),
  b"]": lambda m: m.push([]),
  b")": lambda m: m.push(()),
  b"t": lambda m: m.push(tuple(m.marked())),
  b"l": lambda m: m.push(m.marked()),
  b"\x85": lambda m: m.push(m.top(1)),
  b"\x86": lambda m: m.push(m.top(2)),
  b"\x87": lambda m: m.push(m.top(3)),
  b"s": lambda m: m.put(m.top(2)),
  b"u": lambda m: m.put(m.marked()),
  b"a": lambda m: m.extend(m.top(1)),
  b"e": lambda m: m.extend(m.marked()),
  b"q": remember(lambda m: m.number("<B")),
  b"r": remember(lambda m: m.number("<I")),
  b"\x94": remember(lambda m: len(m.memo)),
  b"h": lambda m: m.push(m.memo[m.number("<B")]),
  b"j": lambda m: m.push(m.memo[m.number("<I")]),
  b"c": lambda m: m.name(m.line(), m.line()),
  b"\x93": lambda m: m.name(*m.top(2)),
  b"R": lambda m: m.call(*m.top(2)),
  b"\x81": lambda m: m.call(*m.top(2)),
  b"b": Machine.build,
  b"Q": Machine.storage,
}
