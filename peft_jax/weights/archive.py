"""Members of a zip file, for reading files that nobody vouches for.

    members    in any order: 30 bytes and a name, then the data, as it is or deflated
    directory  one entry of 46 bytes and a name per member, with sizes, offset and check sum
    end        22 bytes with place and length of the directory; 56 more in zip64

Every offset and size is checked against the file before anything is read or allocated. The standard
library's zipfile makes half a kilobyte of objects per entry of a directory of any length, and
learns of overlaps and of false sizes only while it unpacks; hence this reader. Format: PKWARE's
APPNOTE.TXT, sections 4.3 and 4.5.3.
"""

import dataclasses
import struct
import zlib

from peft_jax import files

LARGEST_DIRECTORY = 4 << 20  # bytes; a checkpoint of 1000 tensors has 0.1 MB
SMALL = 16 << 20
MOST_PACKED = 20  # times its size in the file; trained weights shrink by a tenth
CHUNK = 1 << 20
STORED, DEFLATED = 0, 8


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
  """at: of its header; limit: where the next thing begins; packed, size: bytes in the file, and
  unpacked."""

  name: str
  at: int
  limit: int
  packed: int
  size: int
  method: int
  crc: int


def members(file):
  """{name: Member} of an open binary file; ValueError for what is no sound zip file."""
  length = file.seek(0, 2)
  begin, size = directory(file, length)
  data = at_offset(file, begin, size)
  found, at = [], 0
  while at < size:
    entry, at = read_entry(data, at)
    found.append(entry)
  found.sort()
  out = {}
  for (at, name, *rest), after in zip(found, [*found[1:], (begin,)], strict=True):
    packed, unpacked, method, crc = rest
    if at + 30 + len(name.encode()) + packed > after[0]:
      raise ValueError(f"its member {name[:80]!r} of {packed} bytes overlaps what follows it")
    if name in out:
      raise ValueError(f"its member {name[:80]!r} comes twice")
    if method not in (STORED, DEFLATED) or (method == STORED and packed != unpacked):
      raise ValueError(f"its member {name[:80]!r} is packed in a way that is not supported")
    out[name] = Member(name, at, after[0], packed, unpacked, method, crc)
  total = sum(m.size for m in out.values())
  if total > MOST_PACKED * length + SMALL:
    raise ValueError(f"it has {length} bytes and would unpack to {total}: no weights do that")
  return out


def directory(file, length):
  """(offset, bytes) of the directory."""
  start = max(0, length - 22 - 65535)
  tail = at_offset(file, start, length - start)
  at = tail.rfind(b"PK\5\6")
  if at < 0 or len(tail) - at < 22:
    raise ValueError("its end, where a zip file lists its members, is missing")
  end = start + at
  size, begin = struct.unpack_from("<LL", tail, at + 12)
  if at >= 20 and tail[at - 20 : at - 16] == b"PK\6\7":
    end, = struct.unpack_from("<Q", tail, at - 12)
    record = at_offset(file, end, 56)
    if record[:4] != b"PK\6\6":
      raise ValueError("the record of its zip64 directory is missing")
    size, begin = struct.unpack_from("<QQ", record, 40)
  if begin + size > end:
    raise ValueError(f"its directory at byte {begin} would have {size} bytes")
  if size > LARGEST_DIRECTORY:
    raise ValueError(f"its directory has {size} bytes, far too many")
  return begin, size


def read_entry(data, at):
  """((offset, name, packed, size, method, crc), position of the next entry)."""
  if len(data) - at < 46 or data[at : at + 4] != b"PK\1\2":
    raise ValueError(f"byte {at} of its directory begins no entry")
  flags, method, crc, packed, size, name, extra, comment = struct.unpack_from(
    "<8xHH4xLLLHHH", data, at)
  offset, = struct.unpack_from("<L", data, at + 42)
  after = at + 46 + name + extra + comment
  if after > len(data):
    raise ValueError(f"the entry at byte {at} of its directory is cut off")
  if flags & 1:
    raise ValueError("its members are encrypted")
  more = data[at + 46 + name : at + 46 + name + extra]
  text = data[at + 46 : at + 46 + name].decode()
  values = [size, packed, offset]
  while len(more) >= 4:
    kind, n = struct.unpack_from("<HH", more)
    if kind == 1:  # zip64: those of the three that did not fit, in this order
      wide = [i for i, v in enumerate(values) if v == 0xFFFFFFFF]
      if n > len(more) - 4 or n < 8 * len(wide):
        raise ValueError(f"the sizes of its member {text[:80]!r} are cut off")
      for i, v in zip(wide, struct.unpack_from(f"<{len(wide)}Q", more, 4), strict=True):
        values[i] = v
    more = more[4 + n :]
  size, packed, offset = values
  return (offset, text, packed, size, method, crc), after


def read(file, member):
  """The bytes of one member, after its check sum agreed."""
  header = at_offset(file, member.at, 30)
  name, extra = struct.unpack_from("<HH", header, 26)
  start = member.at + 30 + name + extra
  if header[:4] != b"PK\3\4" or start + member.packed > member.limit:
    raise ValueError(f"the header of its member {member.name[:80]!r} is damaged")
  if member.method == STORED:
    data = at_offset(file, start, member.size)
    crc = zlib.crc32(data)
  else:
    # Once to see that it is as long as it says, once to keep it: a false size allocates nothing.
    crc = length = 0
    for part in inflated(file, start, member.packed):
      crc, length = zlib.crc32(part, crc), length + len(part)
      if length > member.size:
        break
    if length != member.size:
      raise ValueError(f"its member {member.name[:80]!r} does not unpack to {member.size} bytes")
    data = bytearray(length)
    at = 0
    for part in inflated(file, start, member.packed):
      data[at : at + len(part)] = part
      at += len(part)
  if crc != member.crc:
    raise ValueError(f"the check sum of its member {member.name[:80]!r} does not agree")
  return data


def inflated(file, start, packed):
  """The unpacked bytes in pieces of at most CHUNK."""
  stream, end = zlib.decompressobj(-15), start + packed
  part = out = b""
  while not stream.eof:
    if not part and not out:  # all that was put in has come out
      if start == end:
        return
      part = at_offset(file, start, min(CHUNK, end - start))
      start += len(part)
    try:
      out = stream.decompress(part, CHUNK)
    except zlib.error as error:
      raise ValueError(str(error)) from None
    part = stream.unconsumed_tail
    yield out


def at_offset(file, start, size):
  """`size` bytes from `start`, all of them; the file's own length bounds what is allocated."""
  if start < 0 or start + size > file.seek(0, 2):
    raise ValueError(f"it ends before byte {start + size}")
  file.seek(start)
  return files.take(file, size)
