"""What cannot be packed, and files that are cut, altered, foreign or made up: each is refused in one sentence."""

import json
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax.core.errors import UserError
from leanax.deploy import pack, unpack
from leanax.deploy.packed import arrays, grids, header, streams
from leanax.deploy.packed.model import Damaged
from tests.deploy.test_packed import channel_grid, kernel, same


def refusal(content, **options):
  with pytest.raises(UserError) as caught:
    unpack(content, **options)
  text = str(caught.value)
  assert "the packed file" in text and "\n" not in text and len(text) < 400
  return text


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
