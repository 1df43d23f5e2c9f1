"""The frame of a packed file: a preamble, a header of JSON, and the arrays' streams one after the other.

| bytes | |
| --- | --- |
| 0 to 7 | `LEANAXPK` |
| 8 to 11 | the form of the file, 1 |
| 12 to 15 | length of the header as it lies in the file |
| 16 to 19 | CRC-32 of all bytes behind these |
| from 20 | the header: JSON through zlib |
| after it | the streams, in the order of the arrays; nothing behind them |

Whole numbers are little-endian. The header says each stream's length, so there are no offsets that could overlap or
point elsewhere.
"""

import json
import struct
import zlib
from collections.abc import Iterable
from typing import Any

from leanax.core.errors import UserError
from leanax.deploy.packed.model import Damaged
from leanax.deploy.packed.streams import inflate

MAGIC = b"LEANAXPK"
FORM = 1
_PREAMBLE = struct.Struct("<8sIII")


def write(header: dict[str, Any], parts: Iterable[bytes]) -> bytes:
  """Returns a file of a header and of its arrays' streams."""
  text = json.dumps(header, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
  packed = zlib.compress(text, 9)
  if len(text) > _most(len(packed)):
    packed = zlib.compress(text, 0)
  body = b"".join([packed, *parts])
  return _PREAMBLE.pack(MAGIC, FORM, len(packed), zlib.crc32(body)) + body


def _most(length: int) -> int:
  """Returns how long JSON may be whose compressed form is so long: its objects take some 25 times its length."""
  return 2**16 + 16 * length


def read(content: bytes) -> tuple[dict[str, Any], memoryview]:
  """Returns the header, and the bytes behind it.

  Raises:
    Damaged: it is cut short, altered or no JSON.
    UserError: it is of another format or of a newer form; the text is without the file's name.
  """
  if content[:8] != MAGIC:
    raise UserError("is no packed file; expected one of leanax.deploy.packed")
  if len(content) < _PREAMBLE.size:
    raise Damaged("it is cut short")
  _, form, length, checksum = _PREAMBLE.unpack_from(content)
  if form != FORM:
    raise UserError(f"has form {form}, and this program reads form {FORM}; update the program")
  body = memoryview(content)[_PREAMBLE.size :]
  if length > len(body):
    raise Damaged("it is cut short")
  if zlib.crc32(body) != checksum:
    raise Damaged("its bytes do not match their checksum; it is cut short or altered")
  return parsed(inflate(body[:length], _most(length))), body[length:]


def parsed(text: bytes) -> dict[str, Any]:
  """Returns an object of JSON.

  Raises:
    Damaged: it is none, or too deep, has a key twice, or numbers that JSON has not.
  """
  try:
    found = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
  except (ValueError, RecursionError) as error:
    raise Damaged("its header is no JSON of ours") from error
  if not isinstance(found, dict):
    raise Damaged("its header is no JSON of ours")
  return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise ValueError("a key stands twice")
  return found


def _no_number(text: str) -> None:
  raise ValueError(f"{text} is no number")
