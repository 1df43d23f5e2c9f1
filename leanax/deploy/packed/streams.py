"""A stream: whole numbers from 0 to 255 in the smallest of four forms, the first byte of which says the form.

| form | after the first byte | |
| --- | --- | --- |
| 0 constant | one symbol | all are it |
| 1 packed | each in ceil(log2 alphabet) bits, lowest bit first | floats' mantissas, tiny arrays |
| 2 zlib | one byte each | runs and repetitions |
| 3 rANS | `leanax.deploy.packed.rans` | codes of weights |

How many they are and below which number is known to the reader from the array's shape and type, and not in the stream.
"""

import zlib

import numpy as np

from leanax.deploy.packed import rans
from leanax.deploy.packed.model import Damaged, pack_bits, unpack_bits

CONSTANT, PACKED, ZLIB, RANS = range(4)


def encode(symbols: np.ndarray, alphabet: int) -> bytes:
  """Returns the stream of uint8 symbols below `alphabet` (2 to 256); none of an empty array."""
  if not len(symbols):
    return b""
  if np.all(symbols == symbols[0]):
    return bytes([CONSTANT, symbols[0]])
  forms = {PACKED: pack_bits(symbols, width(alphabet))}
  coded = rans.encode(symbols, alphabet)
  if coded is not None:
    forms[RANS] = coded
  if _repeats(symbols, min(map(len, forms.values())) / len(symbols)):
    forms[ZLIB] = zlib.compress(symbols.tobytes(), 6)
  best = min(forms, key=lambda form: len(forms[form]))
  return bytes([best]) + forms[best]


def _repeats(symbols: np.ndarray, share: float) -> bool:
  """Returns whether zlib may take less than so many bytes for each symbol, from samples of a large array."""
  if len(symbols) <= 2**18:
    return True
  starts = np.linspace(0, len(symbols) - 2**13, 16).astype(np.intp)
  sample = np.concatenate([symbols[start : start + 2**13] for start in starts])
  return len(zlib.compress(sample.tobytes(), 6)) < share * len(sample)


def decode(data: memoryview, count: int, alphabet: int) -> np.ndarray:
  """Returns the `count` symbols of a stream, uint8; the caller has bounded their number.

  Raises:
    Damaged: it is no stream of so many.
  """
  if not count or not len(data):
    if count or len(data):
      raise Damaged("an array holds another number of values than its shape")
    return np.zeros(0, np.uint8)
  form, body = data[0], data[1:]
  if form == CONSTANT and len(body) == 1:
    found = np.full(count, body[0], np.uint8)
  elif form == PACKED and len(body) == -(-count * width(alphabet) // 8):
    found = unpack_bits(body, count, width(alphabet))
  elif form == ZLIB:
    found = np.frombuffer(inflate(body, count), np.uint8)
  elif form == RANS:
    found = rans.decode(body, count, alphabet)
  else:
    raise Damaged("an array is in an unknown form, or of another length than its shape")
  if len(found) != count or np.any(found >= alphabet):
    raise Damaged("an array does not hold what its type and shape say")
  return found


def inflate(data: memoryview, most: int) -> bytes:
  """Returns what zlib has made of at most so many bytes; no more than these are ever made again.

  Raises:
    Damaged: they are more, or none of zlib's.
  """
  reader = zlib.decompressobj()
  try:
    found = reader.decompress(data, most + 1)
  except zlib.error:
    raise Damaged("compressed bytes cannot be read") from None
  if len(found) > most or not reader.eof or reader.unused_data:
    raise Damaged("compressed bytes are more or fewer than they are to be")
  return found


def width(alphabet: int) -> int:
  """Returns the bits of a symbol."""
  return (alphabet - 1).bit_length()
