"""Packed files: every bit comes back, near the entropy of the codes; damaged and hostile files are refused."""

import json
import math
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

import quant
from leanax.core.errors import UserError
from leanax.deploy import pack, unpack
from leanax.deploy.packed import arrays, grids, header, rans, streams
from leanax.deploy.packed.model import Damaged


def bits(array):
  array = np.asarray(array)
  return array.shape, array.dtype.name, array.tobytes()


def same(a, b):
  """Whether two trees have the same containers, and arrays of the same bits."""
  if isinstance(a, dict):
    return type(b) is dict and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
  if isinstance(a, list | tuple):
    return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
  return b is None if a is None else bits(a) == bits(b)


def refusal(content, **options):
  with pytest.raises(UserError) as caught:
    unpack(content, **options)
  text = str(caught.value)
  assert "the packed file" in text and "\n" not in text and len(text) < 400
  return text


def entropy(codes):
  """Bytes of codes at the entropy of their histogram, in float64 from its definition."""
  _, counts = np.unique(codes, return_counts=True)
  return -sum(n * math.log2(n / codes.size) for n in counts.tolist()) / 8


SPECIAL = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x80000000, 0, 1, 0x7F7FFFFF], np.uint32)


def test_every_bit_comes_back():
  tree = {
    "params": {
      "special": SPECIAL.view(np.float32),
      "sparse": np.where(np.arange(900) % 7, 0, np.arange(900)).astype(np.float32).reshape(30, 5, 6),
      "half": np.linspace(-3, 3, 50).astype(ml_dtypes.bfloat16),
      "layers": [{"scalar": np.float32(-0.0)}, (np.zeros((0, 3), np.int8), None), {}],
      "a/b": np.ones(2, bool),
    },
    "counts": {3: np.arange(5000), "x": np.array(-1, np.int64), 1: np.arange(40, dtype=np.uint16).reshape(2, 1, 20)},
  }
  metadata = {"classes": ["a", "ü"], "nested": {"x": [1, 2.5, None, True]}}
  read = unpack(pack(tree, metadata=metadata))
  assert same(tree, read.variables) and read.metadata == metadata and read.grids == {}
  assert all(not leaf.flags.writeable for leaf in jax.tree.leaves(read.variables["params"]))


@pytest.mark.parametrize("dtype", sorted(arrays.DTYPES))
@pytest.mark.parametrize("shape", [(), (0,), (7, 3), (2, 3, 1, 5, 20)])
def test_every_type_and_rank(dtype, shape):
  size = math.prod(shape) * arrays.DTYPES[dtype].itemsize
  content = np.random.default_rng(size).integers(0, 2 if dtype == "bool" else 256, size).astype(np.uint8)
  leaf = content.view(arrays.DTYPES[dtype]).reshape(shape)
  assert same({"x": leaf}, unpack(pack({"x": leaf})).variables)


@pytest.mark.parametrize("tree", [np.arange(3.0), [], None, {}, {"a": {}}, (np.ones(2),), jnp.ones((2, 2))])
def test_any_container_may_be_the_whole(tree):
  assert same(tree, unpack(pack(tree)).variables)


def test_other_mappings_and_registered_containers_come_back_as_dicts():
  spec = jax.tree_util.Partial(len, np.ones(2, np.float32))
  read = unpack(pack({"a": quant.Grid(np.float32(1), np.int32(0), 8), "b": spec})).variables
  assert read["a"] == {"scale": 1, "zero_point": 0} and not isinstance(read["b"], jax.tree_util.Partial)


def test_a_path_is_its_bytes(tmp_path):
  path = tmp_path / "x.packed"
  path.write_bytes(pack({"x": np.arange(9)}))
  assert same(unpack(path).variables, unpack(path.read_bytes()).variables)
  with pytest.raises(UserError, match="cannot read the packed file"):
    unpack(tmp_path / "none.packed")
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match=r"x\.packed is damaged: its bytes do not match"):
    unpack(path)


def test_equal_trees_are_equal_bytes_and_equal_arrays_are_stored_once():
  a, b = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32)
  assert pack({"a": a, "b": b}) == pack({"b": jnp.asarray(b), "a": np.asfortranarray(a)})
  assert len(pack({"a": a, "b": a})) < len(pack({"a": a})) + 20


GOLDEN = "4c45414e4158504b01000000b3000000"  # the preamble; the rest is in `test_the_bytes_of_a_file_stay`


def kernel(shape=(64, 40), seed=0, zeros=0.5):
  w = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  return np.where(np.abs(w) < np.quantile(np.abs(w), zeros), np.float32(0), w)


def channel_grid(w, width, axis=-1, **options):
  others = tuple(i for i in range(w.ndim) if i != axis % w.ndim)
  return quant.symmetric(jnp.asarray(np.abs(w).max(others)), width, axis=axis, **options)


def by_fours(w):
  """The scales of groups of four inputs, at 4 bits."""
  return jnp.asarray(np.maximum(np.abs(w).reshape(16, 4, 40).max(1), 0.1) / np.float32(7))


GRIDS = {
  "ternary": lambda w: channel_grid(w, 2),
  "3 bits, first axis": lambda w: channel_grid(w, 3, axis=0),
  "4 bits, one scale": lambda w: quant.symmetric(jnp.float32(1.5), 4),
  "5 bits, full": lambda w: channel_grid(w, 5, narrow=False),
  "8 bits": lambda w: channel_grid(w, 8),
  "16 bits": lambda w: channel_grid(w, 16),
  "affine": lambda w: quant.affine(jnp.float32(-0.7), jnp.float32(2.9), 6),
  "unsigned": lambda w: quant.affine(jnp.float32(-0.7), jnp.float32(2.9), 8, signed=False),
  "affine channels": lambda w: quant.affine(jnp.asarray(w.min(0)), jnp.asarray(w.max(0)), 7, axis=1),
  "powers of two": lambda w: channel_grid(w, 5, format="power_of_two"),
  "fp8": lambda w: channel_grid(w, 8, format="fp8_e4m3"),
  "two axes": lambda w: quant.Grid(by_fours(w), jnp.zeros((16, 40), jnp.int32), 4, True, True, (0, 2), (16, 4, 40)),
  "blocks": lambda w: quant.Grid(by_fours(w), jnp.zeros((), jnp.int32), 4, True, True),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", GRIDS)
def test_a_leaf_on_a_grid_comes_back_as_the_values_of_its_codes(name, dtype):
  w = kernel().astype(arrays.DTYPES[dtype])
  grid = GRIDS[name](w.astype(np.float32))
  read = unpack(pack({"params": {"Dense_0": {"kernel": w}}}, {"Dense_0/kernel": grid}))
  leaf = read.variables["params"]["Dense_0"]["kernel"]
  codes = quant.codes(w, grid)
  assert bits(leaf) == bits(quant.dequantize(codes, grid, dtype))
  assert set(read.grids) == {"Dense_0/kernel"}
  again = read.grids["Dense_0/kernel"]
  np.testing.assert_array_equal(quant.codes(leaf, again), codes)
  assert (again.bits, again.ends, again.axis, again.shape) == (grid.bits, grid.ends, grid.axis, grid.shape)
  assert bits(again.scale) == bits(grid.scale) and bits(again.zero_point) == bits(grid.zero_point)


def test_what_rounding_changes_again_is_stored_as_it_is():
  w = np.array([3.0e38, 1.0, -2.0], np.float32)
  read = unpack(pack({"w": w}, {"w": quant.Grid(jnp.float32(3e38), jnp.int32(0), 8)}))
  assert read.variables["w"].tolist() == [0, 0, 0]  # as XLA rounds it: 1 / 3e38 is below the normal numbers
  half = np.array([65504, 2000, -1000], np.float16)  # the highest on a grid of 1000 would be infinite
  read = unpack(pack({"w": half}, {"w": quant.Grid(jnp.float32(1000), jnp.int32(0), 8)}))
  assert bits(read.variables["w"]) == bits(half) and read.grids == {}


@pytest.mark.parametrize(
  ("size", "width", "zeros"),
  [(20_000, width, zeros) for width in (8, 4, 2) for zeros in (0.0, 0.5, 0.8, 0.9, 0.95)] + [(200_000, 8, 0.9)],
)
def test_files_are_within_five_percent_of_the_entropy(size, width, zeros):
  shape = (size // 100, 100)
  w = kernel(shape, seed=width, zeros=zeros)
  largest = np.abs(w).max() if width == 8 else 2.5  # clipped, as errors of few bits ask for
  grid = quant.symmetric(jnp.float32(largest), width)
  content = pack({"kernel": w}, {"kernel": grid})
  limit = entropy(np.asarray(quant.codes(w, grid)))
  (codes,) = (sum(row[3]) for row in header.read(content)[0]["arrays"] if row[2] == "codes")
  assert limit < codes < 1.05 * limit and len(content) < codes + 250


def test_the_pruned_file_is_smaller_than_a_mask_and_packed_values():
  w = kernel((300, 300), zeros=0.9)
  content = pack({"w": w})
  nonzero = np.count_nonzero(w)
  mask = entropy(w != 0)
  assert len(content) < 1.01 * (mask + 4 * nonzero)
  assert bits(unpack(content).variables["w"]) == bits(w)


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


@pytest.mark.parametrize(
  ("variables", "grids", "metadata", "words"),
  [
    ({"a": 1.0}, {}, {}, "'a' of the variables is a float; expected arrays"),
    ({"a": {"b": jax.ShapeDtypeStruct((2,), "float32")}}, {}, {}, "'a/b' of the variables is a ShapeDtypeStruct"),
    ({"a": jax.random.key(0)}, {}, {}, "'a' of the variables has type key<fry>; expected one of bool"),
    ({"a": np.array(["x"])}, {}, {}, "'a' of the variables has type <U1"),
    ({(1, 2): np.ones(2)}, {}, {}, r"the key \(1, 2\)"),
    ({"params": {"a": np.ones(2)}, "a": np.ones(2)}, {}, {}, "two leaves of the variables are named 'a'"),
    ({"kernel": np.ones(2)}, {"kernle": quant.symmetric(jnp.float32(1), 8)}, {}, "did you mean 'kernel'"),
    ({"a": np.ones(2, np.float32)}, {"a": 3}, {}, "the grid of 'a' is of type int"),
    ({"a": np.ones(2, np.float32)}, {"a": quant.Grid(jnp.float32(np.nan), jnp.int32(0), 8)}, {}, "positive and finite"),
    ({"a": np.ones(2, np.float32)}, {"a": quant.Grid(jnp.float32(0), jnp.int32(0), 8)}, {}, "positive and finite"),
    ({"a": np.ones(2, np.float32)}, {"a": quant.Grid(jnp.float32(1), jnp.int32(200), 8)}, {}, "are no codes"),
    ({"a": np.ones(2, np.float32)}, {"a": quant.Grid(jnp.ones(3), jnp.int32(0), 8, axis=0)}, {}, "'a' cannot be put"),
    ({"a": np.ones(2, np.int32)}, {"a": quant.symmetric(jnp.float32(1), 8)}, {}, "'a' cannot be put on its grid"),
    ({"a": np.float32([np.nan])}, {"a": quant.symmetric(jnp.float32(1), 8)}, {}, "codes of NaN"),
    ({}, {}, {"a": np.ones(2)}, "metadata cannot be packed"),
    ({}, {}, {"a": math.nan}, "metadata cannot be packed"),
  ],
)  # fmt: skip
def test_what_cannot_be_packed_is_refused(variables, grids, metadata, words):
  with pytest.raises(UserError, match=words) as caught:
    pack(variables, grids, metadata)
  assert "\n" not in str(caught.value)


def test_trees_that_are_too_deep_are_refused():
  deep = {"x": np.ones(1)}
  for _ in range(200):
    deep = {"x": deep}
  with pytest.raises(UserError, match="levels deep"):
    pack(deep)


CONTENT = pack(
  {"params": {"w": kernel((40, 30)), "b": np.arange(1, 31, dtype=np.float32)}, "rest": [np.zeros(5000, np.float32)]},
  {"w": quant.symmetric(jnp.float32(2.0), 4)},
  {"recipe": {"name": "x"}},
)
HEAD, BODY = header.read(CONTENT)


def rewritten(change):
  """The file with another header, as a hostile writer makes it: lengths and checksum are right."""
  head = json.loads(json.dumps(HEAD))
  change(head)
  return header.write(head, [BODY])


def test_what_is_rewritten_without_a_change_is_read():
  assert same(unpack(rewritten(lambda head: None)).variables, unpack(CONTENT).variables)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 19, 20, 60, len(CONTENT) - 1])
def test_cut_files_are_refused(length):
  text = refusal(CONTENT[:length])
  assert ("is no packed file" in text) == (length < 8)


def test_single_bits_that_flip_are_found():
  for place in range(len(CONTENT) * 8):
    content = bytearray(CONTENT)
    content[place // 8] ^= 1 << place % 8
    refusal(bytes(content))


def put(*path_and_value):
  """The change of a header that puts a value at a path; arrays are found by their layout or shape."""

  def change(head):
    *path, key, value = path_and_value
    for part in path:
      head = next(row for row in head if part in (row[2], *row[1])) if isinstance(head, list) else head[part]
    head[key] = value

  return change


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (put("arrays", []), "not as long as its header says"),
    (put("arrays", "codes", 1, [2**40, 2**40]), "an array that is none"),
    (put("arrays", "codes", 1, [4000, 30]), ""),
    (put("arrays", "codes", 1, [40, 29]), ""),
    (put("arrays", "codes", 1, [40, -30]), "an array that is none"),
    (put("arrays", "codes", 1, [40, True]), "an array that is none"),
    (put("arrays", "codes", 1, [40.0, 30]), "an array that is none"),
    (put("arrays", "codes", 1, [1] * 40), "an array that is none"),
    (put("arrays", "codes", 0, "object"), "an array that is none"),
    (put("arrays", "codes", 0, "int32"), "no grid that it can lie on"),
    (put("arrays", "codes", 0, "float64"), None),
    (put("arrays", "codes", 4, "b"), "no grid that it can lie on"),
    (put("arrays", "codes", 3, [10**9]), "not as long as its header says"),
    (put("arrays", "codes", 2, "planes"), "an array that is none"),
    (put("arrays", 5000, 1, [10**7]), None),
    (put("arrays", 5000, 1, [2**40]), "beyond the limit of 67,108,864"),
    (put("tree", {"w": 99}), "an array that is not there"),
    (put("tree", {"w": -1}), "an array that is not there"),
    (put("tree", {"w": True}), "none of arrays"),
    (put("tree", ["set", 0]), "none of arrays"),
    (put("tree", ["dict", [1, 0], [1, 0]]), "a key twice"),
    (put("metadata", 3), "lacks a part"),
    (put("grids", {}), "no grid that it can lie on"),
    (put("grids", "w", "scale", "x"), "an array that is not there"),
    (put("grids", "w", "bits", 9), "9 bits is not served"),
    (put("grids", "w", "bits", 8.0), "the grid of 'w' is none"),
    (put("grids", "w", "bits", 3), ""),
    (put("grids", "w", "format", "os"), "no known format"),
    (put("grids", "w", "format", "fp8_e4m3"), "expected a narrow signed grid"),
    (put("grids", "w", "axis", 0), None),
    (put("grids", "w", "shape", [2**70, 0]), "does not fit its leaf"),
    (put("grids", "w", "shape", [-40, -30]), "does not fit its leaf"),
    (put("grids", "w", "zero_point", 1), ""),
    (put("grids", "w", "more", 1), "the grid of 'w' is none"),
    (put("more", 1), "lacks a part"),
  ],
)
def test_headers_that_lie_are_refused(change, words):
  content = rewritten(change)
  if words is None:  # it is another file, and a true one
    assert unpack(content)
  else:
    assert words in refusal(content)


def test_scales_that_are_none_are_refused():
  for scale in (np.nan, np.inf, 0.0, -1.0):
    head = json.loads(json.dumps(HEAD))
    head["arrays"].append(["float32", [], "bytes", [6]])
    head["grids"]["w"]["scale"] = len(head["arrays"]) - 1
    stream = bytes([streams.PACKED]) + np.float32(scale).tobytes()
    head["arrays"][-1][3] = [len(stream)]
    assert "positive and finite" in refusal(header.write(head, [BODY, stream]))


@pytest.mark.parametrize(
  "text",
  [b"[" * 50_000, b'{"a":' * 50_000, b"{}", b"[]", b"\xff", b"", b'{"tree":1,"tree":2}', b'{"a":NaN}', b"9" * 6000],
)
def test_headers_that_are_no_header_are_refused(text):
  packed = zlib.compress(text)
  body = packed + bytes(BODY)
  preamble = header.MAGIC + b"".join(n.to_bytes(4, "little") for n in (1, len(packed), zlib.crc32(body)))
  assert "is damaged" in refusal(preamble + body)


@pytest.mark.parametrize("text", [b'{"a":1,"b":2,"a":1}', b'{"a":NaN}', b'{"a":[-Infinity]}'])
def test_json_of_other_writers_is_refused(text):
  assert header.parsed(b'{"a":1,"b":[2.5,null]}') == {"a": 1, "b": [2.5, None]}
  with pytest.raises(Damaged):
    header.parsed(text)


def test_codes_and_bools_that_are_none_are_refused():
  last = [memoryview(bytes([streams.CONSTANT, 255]))] * 2
  full, narrow = (quant.Grid(np.float32(1), np.int32(0), 16, narrow=one) for one in (False, True))
  assert arrays.decode_codes(last, (2,), full).tolist() == [2**15 - 1] * 2
  with pytest.raises(Damaged, match="beyond its grid"):
    arrays.decode_codes(last, (2,), narrow)
  twos = [memoryview(bytes([streams.CONSTANT, 2]))]
  with pytest.raises(Damaged, match="bools"):
    arrays.decode("bytes", twos, (2,), np.dtype(bool))
  fp8 = channel_grid(np.ones((1, 1), np.float32), 8, format="fp8_e4m3")
  for code in (-127, 127):  # NaN in these floats; of 255 codes the levels are 253
    with pytest.raises(UserError, match="beyond the 253 levels"):
      grids.values(np.array([[code]]), fp8, np.dtype(np.float32))


def test_what_is_inflated_is_bounded():
  packed = memoryview(zlib.compress(bytes(101)))
  assert streams.inflate(packed, 101) == bytes(101)
  with pytest.raises(Damaged, match="more or fewer"):
    streams.inflate(packed, 100)


def test_a_header_that_grows_without_end_is_not_unpacked():
  packed = zlib.compress(b" " * 2**26, 9)
  preamble = header.MAGIC + b"".join(n.to_bytes(4, "little") for n in (1, len(packed), zlib.crc32(packed)))
  assert "more or fewer" in refusal(preamble + packed)


def test_repetitive_metadata_are_packed_all_the_same():
  metadata = {"names": ["the same"] * 100_000}
  assert unpack(pack({}, metadata=metadata)).metadata == metadata


def test_foreign_and_newer_files_are_refused():
  assert "is no packed file" in refusal(b"TFL3" + CONTENT)
  assert "has form 2, and this program reads form 1" in refusal(CONTENT[:8] + b"\2" + CONTENT[9:])


def test_the_limit_is_the_readers():
  zeros = {"x": np.zeros(2**24 + 1, np.float32)}
  content = pack(zeros)
  assert len(content) < 300
  assert "67,108,868 bytes, beyond the limit of 67,108,864; give a higher limit=" in refusal(content)
  assert unpack(content, limit=2**27).variables["x"].shape == (2**24 + 1,)
  assert "beyond the limit of 100" in refusal(CONTENT, limit=100)


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
