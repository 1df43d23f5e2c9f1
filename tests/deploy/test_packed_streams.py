"""The streams of packed files: symbols come back, by the equations of the coder, and no other bytes are read."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

from leanax.deploy.packed import rans, streams
from leanax.deploy.packed.model import Damaged
from tests.deploy.test_packed import entropy


@settings(max_examples=40, deadline=None)
@given(
  st.integers(2, 256).flatmap(
    lambda n: st.tuples(st.just(n), drawn.arrays(np.uint8, st.integers(1, 700), elements=st.integers(0, n - 1)))
  )
)
def test_streams_give_back_symbols(drawing):
  alphabet, symbols = drawing
  np.testing.assert_array_equal(
    streams.decode(memoryview(streams.encode(symbols, alphabet)), len(symbols), alphabet), symbols
  )
  np.testing.assert_array_equal(
    rans.decode(memoryview(rans.encode(symbols, alphabet)), len(symbols), alphabet), symbols
  )


def test_the_coder_is_the_one_of_its_equations():
  """One lane, decoded by the textbook's scalar steps in Python's own numbers."""
  symbols = np.random.default_rng(0).choice(5, 300, p=[0.6, 0.2, 0.1, 0.07, 0.03]).astype(np.uint8)
  data = memoryview(rans.encode(symbols, 5))
  found, length = rans.models.read(data, 5)
  assert int.from_bytes(data[length : length + 2], "little") == 1 and sum(found.frequencies) == 2**15
  state = int.from_bytes(data[length + 2 : length + 6], "little")
  words = [int.from_bytes(data[i : i + 2], "little") for i in range(length + 6, len(data), 2)]
  decoded = []
  for _ in range(300):
    place, start = state % 2**15, 0
    symbol = next(s for s in range(5) if place < sum(found.frequencies[: s + 1].tolist()))
    start = sum(found.frequencies[:symbol].tolist())
    state = int(found.frequencies[symbol]) * (state >> 15) + place - start
    if state < 2**16:
      state = state << 16 | words.pop(0)
    decoded.append(symbol)
  assert decoded == symbols.tolist() and state == 2**16 and not words


def test_rare_symbols_that_are_many_have_a_table():
  symbols = np.concatenate([np.zeros(28_000, np.uint8), np.arange(1, 255, dtype=np.uint8)])
  data = rans.encode(symbols, 255)
  assert entropy(symbols) < len(data) < 1.2 * entropy(symbols)
  np.testing.assert_array_equal(rans.decode(memoryview(data), len(symbols), 255), symbols)


def test_a_table_is_read_as_it_was_written():
  random = np.random.default_rng(1)
  for symbols in (2, 3, 15, 127, 255, 256):
    for scale in (1, 50, 10_000):
      counts = (random.gamma(0.3, size=symbols) * scale).astype(np.int64)
      counts[random.integers(symbols)] += 1 + scale * random.integers(3)
      fitted, table = rans.models.fit(counts)
      again, length = rans.models.read(memoryview(table), symbols)
      assert length == len(table) and fitted.frequencies.tolist() == again.frequencies.tolist()
      assert fitted.frequencies.sum() == 2**15 and np.all(fitted.frequencies[counts > 0] > 0)


@pytest.mark.parametrize(
  "table",
  [
    b"\x10\5\xff\x7f\0\0",  # the most frequent is none of the two symbols
    b"\x10\0\xff\x7f\x20\0",  # it has the whole, and another one occurs
    b"\x10\0\0\x80\0\0",  # it has more than the whole
    b"\x16\0\xff\x7f\0\0",  # groups of 64
    b"\x50\0\xff\x7f\0\0",  # mantissas of 5 bits
    b"\x10\0\xff\x7f\0",
    b"\x10\0\xff",
  ],
)
def test_tables_that_are_none_are_refused(table):
  for levels, expected in ((b"\x40", [2**14, 2**14]), (b"\x20", [2**15 - 1, 1]), (b"\0", [2**15, 0])):
    true = b"\x10\0\xff\x3f" + levels + b"\0"
    assert rans.models.read(memoryview(true), 2)[0].frequencies.tolist() == expected
  with pytest.raises(Damaged, match="table"):
    rans.models.read(memoryview(table), 2)


def test_what_is_inflated_is_bounded():
  packed = memoryview(zlib.compress(bytes(101)))
  assert streams.inflate(packed, 101) == bytes(101)
  with pytest.raises(Damaged, match="more or fewer"):
    streams.inflate(packed, 100)


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"\0",
    b"\0\1\2",
    b"\4abc",
    b"\1" + bytes(10),
    b"\2" + zlib.compress(bytes(99)),
    b"\2" + zlib.compress(bytes(101)),
    b"\2" + zlib.compress(bytes(100)) + b"x",
    b"\2" + zlib.compress(bytes([200] * 100)),
    b"\3",
    b"\3" + bytes(3),
    b"\3\x10\0\xff\xff",  # a share above the whole
    b"\3\x1f\0\xff\x7f" + bytes(20),  # groups that there are not
    b"\3\x10\0\xff\x7f" + bytes(63),  # all symbols but one absent, lanes 0
    b"\3\x10\0\xff\x7f" + bytes(62) + b"\1\0" + bytes(4),  # a state below the least
  ],
)
def test_streams_of_another_length_or_form_are_refused(data):
  with pytest.raises(Damaged):
    streams.decode(memoryview(data), 100, 100)


def test_coded_symbols_are_read_to_their_end():
  symbols = np.tile(np.array([0, 0, 1, 2], np.uint8), 50)
  data = rans.encode(symbols, 3)
  for count, content in ((200, data + b"\0\0"), (200, data[:-2]), (199, data), (201, data)):
    with pytest.raises(Damaged):
      rans.decode(memoryview(content), count, 3)
  short = rans.encode(symbols[:9], 3)  # its state alone: there are no words that could be left
  assert len(short) == len(rans.encode(symbols[:8], 3))
  with pytest.raises(Damaged):
    rans.decode(memoryview(short), 8, 3)
  table, lane = short[:-4], (2**16 - 1).to_bytes(4, "little")
  with pytest.raises(Damaged):
    rans.decode(memoryview(table + lane), 9, 3)


def test_no_stream_costs_its_reader_more_than_its_bytes():
  """One lane of a million symbols would be a million steps of numpy, for a file of a few bytes."""
  table = b"\x10\0\xff\x7f" + bytes(2)  # symbol 0 always
  data = memoryview(table + b"\1\0" + (2**16).to_bytes(4, "little"))
  assert rans.decode(data, 40, 2).tolist() == [0] * 40
  with pytest.raises(Damaged, match="fewer values than its shape"):
    rans.decode(data, 10**6, 2)
