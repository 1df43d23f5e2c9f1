"""An entropy coder for arrays of small symbols: rANS (Duda, arXiv:1311.2540, section 3) in interleaved lanes.

Symbol i is coded by lane i mod K, so that numpy codes K of them in one step. A lane's state x is in [2^16, 2^32); with
a model of frequencies f, starts c and total 2^15 a symbol makes it

    x' = floor(x / f) 2^15 + c + x mod f

after its low 16 bits have gone to the words where x' would not fit. The last symbol is coded first, and so is read
last: then every state is back at 2^16 and every word is used, or the content is damaged. A lane costs about three
bytes, hence small arrays have few.
"""

import numpy as np

from leanax.deploy.packed import model as models
from leanax.deploy.packed.model import TOTAL, TOTAL_BITS, Damaged, Model

_LOW = 2**16
_MOST_STEPS = 2**13  # a lane's symbols
_STEPS_PER_BYTE = 4  # the most, of ten microseconds or so, that a reader spends for each byte of a file


def encode(symbols: np.ndarray, alphabet: int) -> bytes | None:
  """Returns the coded form of uint8 symbols below `alphabet`, at least one; None where it does not pay.

  Layout: the model's table, the lanes (uint16), their states (uint32), the words (uint16), all little-endian.
  """
  counts = np.bincount(symbols, minlength=alphabet)
  model, table = models.fit(counts)
  size = int(model.bits(counts)) // 8 + len(table)
  least = max(-(-len(symbols) // _MOST_STEPS), -(-len(symbols) // (_STEPS_PER_BYTE * size)))
  lanes = max(min(size // 500, 2**12), least)
  if lanes >= 2**16:
    return None
  states, words = _push(symbols, model, lanes)
  parts = (table, lanes.to_bytes(2, "little"), states.astype("<u4").tobytes(), words.astype("<u2").tobytes())
  return b"".join(parts)


def _push(symbols: np.ndarray, model: Model, lanes: int) -> tuple[np.ndarray, np.ndarray]:
  frequency, start = model.frequencies.astype(np.uint64), model.starts.astype(np.uint64)
  states, words = np.full(lanes, _LOW, np.uint64), []
  limits = frequency << np.uint64(32 - TOTAL_BITS)
  for step in range((len(symbols) - 1) // lanes, -1, -1):
    one = symbols[step * lanes : (step + 1) * lanes]
    f, x = frequency[one], states[: len(one)]
    full = x >= limits[one]
    words.append((x[full] & np.uint64(_LOW - 1)).astype(np.uint16))
    x = np.where(full, x >> np.uint64(16), x)
    quotient, remainder = np.divmod(x, f)
    states[: len(one)] = (quotient << np.uint64(TOTAL_BITS)) + start[one] + remainder
  return states, np.concatenate(words[::-1])


def decode(data: memoryview, count: int, alphabet: int) -> np.ndarray:
  """Returns `count` symbols, uint8, that `encode` has coded.

  The caller has bounded `count`; time and memory follow from it and from the length of the data.

  Raises:
    Damaged: the data are none of so many symbols.
  """
  model, length = models.read(data, alphabet)
  lanes = int.from_bytes(data[length : length + 2], "little")
  body = data[length + 2 :]
  if lanes == 0 or len(body) < 4 * lanes or len(body) % 2:
    raise Damaged("a coded array is cut short")
  if -(-count // lanes) > min(_MOST_STEPS, _STEPS_PER_BYTE * len(data)):
    raise Damaged("a coded array holds fewer values than its shape")
  states = np.frombuffer(body[: 4 * lanes], "<u4").astype(np.uint64)
  return _pop(states, np.frombuffer(body[4 * lanes :], "<u2").astype(np.uint64), model, count)


def _pop(states: np.ndarray, words: np.ndarray, model: Model, count: int) -> np.ndarray:
  symbol = np.repeat(np.arange(len(model.frequencies), dtype=np.uint8), model.frequencies)  # by place in the total
  frequency = model.frequencies.astype(np.uint64)[symbol]
  offset = np.arange(TOTAL, dtype=np.uint64) - model.starts.astype(np.uint64)[symbol]
  found, used = np.empty(count, np.uint8), 0
  mask, total_bits, word_bits, low = map(np.uint64, (TOTAL - 1, TOTAL_BITS, 16, _LOW))
  for first in range(0, count, len(states)):
    last = min(first + len(states), count)
    x = states[: last - first]
    place = (x & mask).astype(np.intp)
    found[first:last] = symbol[place]
    x = frequency[place] * (x >> total_bits) + offset[place]
    (short,) = (x < low).nonzero()
    if len(short):
      read = words[used : used + len(short)]
      if len(read) < len(short):
        raise Damaged("a coded array is cut short")
      x[short] = x[short] << word_bits | read
      used += len(short)
    states[: last - first] = x
  if used < len(words) or np.any(states != _LOW):
    raise Damaged("a coded array is none that was written")
  return found
