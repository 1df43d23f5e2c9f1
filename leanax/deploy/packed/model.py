"""A static order-0 model of symbols: whole-number frequencies that add up to 2^15, from a table of a few bytes.

The most frequent symbol has its share written exactly, because where most weights are pruned an error in it costs most.
The others have a level each, or one for 2, 4, ... neighbours, whichever makes the file smallest: codes of weights have
smooth histograms, and a small leaf cannot pay for a table of 255 numbers. Level 0 is a symbol that does not occur, 1
the least frequency, and 2 + m + 2^M e stands for (2^M + m) 2^e, a float of M bits of mantissa. From these weights w,
with W_s = w_0 + ... + w_s, rest R (without the top) and N symbols that occur,

    f_s = 1 + floor(W_s (R - N) / W) - floor(W_{s-1} (R - N) / W),

whole numbers throughout, so that any machine reads the same ones. The top has what is left: its share, and all of R - N
where no other has a weight.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np

TOTAL_BITS = 15
TOTAL = 2**TOTAL_BITS
_GROUPS = range(6)  # 1 to 32 symbols with one level
_MANTISSAS = range(1, 5)


class Damaged(Exception):
  """The content is none that was written; its text says what of it, and stands behind the file's name."""


class Model(NamedTuple):
  """Frequencies of the symbols 0, 1, ..., int64, which add up to `TOTAL`."""

  frequencies: np.ndarray

  @property
  def starts(self) -> np.ndarray:
    """The sum of the frequencies before each symbol."""
    return np.cumsum(self.frequencies) - self.frequencies

  def bits(self, counts: np.ndarray) -> float:
    """Returns the length of symbols that occur so often each; infinite where one of them has no frequency."""
    seen = counts > 0
    if np.any(self.frequencies[seen] == 0):
      return np.inf
    return float(np.sum(counts[seen] * (TOTAL_BITS - np.log2(self.frequencies[seen]))))


def fit(counts: np.ndarray) -> tuple[Model, bytes]:
  """Returns the model and its table that together make symbols shortest, which occur so often each (at least one)."""
  top = int(np.argmax(counts))
  others = counts.copy()
  others[top] = 0
  needed = np.count_nonzero(others)
  share = int(np.clip(round(counts[top] / counts.sum() * TOTAL), 1, TOTAL - needed)) if needed else TOTAL
  found: list[tuple[float, int, Model, bytes]] = []
  for group, mantissa in itertools.product(_GROUPS, _MANTISSAS):
    try:
      levels = _levels(others, TOTAL - share, group, mantissa)
      model = _model(len(counts), top, share, levels, group, mantissa)
    except Damaged:  # groups take in more symbols than there are frequencies to give
      continue
    table = bytes([group | mantissa << 4, top, *(share - 1).to_bytes(2, "little"), *pack_bits(levels, mantissa + 4)])
    found.append((model.bits(counts) + 8 * len(table), len(found), model, table))
  _, _, model, table = min(found)
  return model, table


def read(data: memoryview, symbols: int) -> tuple[Model, int]:
  """Returns the model of so many symbols that a table describes, and the table's length.

  Raises:
    Damaged: it describes none.
  """
  if len(data) < 4:
    raise Damaged("a table of frequencies is cut short")
  group, mantissa, top, share = data[0] & 15, data[0] >> 4, data[1], 1 + int.from_bytes(data[2:4], "little")
  if group not in _GROUPS or mantissa not in _MANTISSAS or top >= symbols or share > TOTAL:
    raise Damaged("a table of frequencies has an unknown form")
  count, width = -(-symbols // 2**group), mantissa + 4
  length = 4 + -(-count * width // 8)
  if len(data) < length:
    raise Damaged("a table of frequencies is cut short")
  levels = unpack_bits(data[4:length], count, width)
  return _model(symbols, top, share, levels, group, mantissa), length


def _levels(counts: np.ndarray, rest: int, group: int, mantissa: int) -> np.ndarray:
  """Returns the nearest level of each group's mean frequency."""
  grouped = _sums(counts, group)
  size = np.minimum(2**group, len(counts) - 2**group * np.arange(len(grouped)))
  mean = grouped / size * (rest / max(counts.sum(), 1)) - 1  # the 1 that each symbol has anyway
  values = _values(mantissa)
  levels = 1 + np.searchsorted((values[1:-1] + values[2:]) / 2, np.maximum(mean, 0) * 2**mantissa)
  return np.where(grouped > 0, levels, 0)


@functools.cache
def _values(mantissa: int) -> np.ndarray:
  """Returns the weight of each level, int64."""
  codes = np.arange(2 ** (mantissa + 4) - 2)
  weights = (2**mantissa + codes % 2**mantissa) << (codes >> mantissa)
  return np.concatenate([[0, 0], weights])


def _sums(counts: np.ndarray, group: int) -> np.ndarray:
  return np.add.reduceat(counts, np.arange(0, len(counts), 2**group))


def _model(symbols: int, top: int, share: int, levels: np.ndarray, group: int, mantissa: int) -> Model:
  levels = np.repeat(levels, 2**group)[:symbols]
  occurs = levels > 0
  occurs[top] = False
  weights = np.where(occurs, _values(mantissa)[levels], 0)
  above = TOTAL - share - int(occurs.sum())
  if above < 0:
    raise Damaged("a table of frequencies does not add up")
  ends = np.cumsum(weights) * above // max(int(weights.sum()), 1)
  frequencies = occurs + np.diff(ends, prepend=0)
  frequencies[top] = TOTAL - frequencies.sum()
  return Model(frequencies)


def pack_bits(values: np.ndarray, width: int) -> bytes:
  """Returns whole numbers of so many bits (8 at most) each, one after the other, lowest bit first."""
  bits = np.unpackbits(values.astype(np.uint8)[:, None], axis=1, bitorder="little", count=width)
  return np.packbits(bits, bitorder="little").tobytes()


def unpack_bits(data: memoryview, count: int, width: int) -> np.ndarray:
  """Returns the `count` numbers, uint8, whose bits `data` holds."""
  bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little", count=count * width)
  return np.packbits(bits.reshape(count, width), axis=1, bitorder="little")[:, 0]
