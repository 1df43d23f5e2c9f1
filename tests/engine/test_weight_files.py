"""Files of weights by name: what is damaged, or would lose an array, is one sentence."""

import msgpack
import numpy as np
import pytest
from flax import serialization

from leanax.core.errors import UserError
from leanax.engine.store import weight_files

ONE = np.ones(2, np.float32)


def refused(path):
  with pytest.raises(UserError) as caught:
    weight_files.read(path)
  text = str(caught.value)
  assert "\n" not in text and text.isprintable()
  return text


def test_msgpack_that_holds_anything(tmp_path):
  path = tmp_path / "x.msgpack"
  path.write_bytes(serialization.msgpack_serialize({"a": {"b": ONE}, "c": 3}))
  assert [*weight_files.read(path)] == ["a/b"]
  mixed = {1: serialization.msgpack_serialize(ONE), "a": 2}  # keys that cannot be sorted
  for content in (msgpack.packb(mixed), b"", b"\xc1", b"\xdd\xff\xff\xff\xff", bytes([0x91] * 5000)):
    path.write_bytes(content)
    assert refused(path).endswith("x.msgpack is damaged or no msgpack file of flax")


def test_two_arrays_of_one_name_are_refused(tmp_path):
  path = tmp_path / "x.msgpack"
  path.write_bytes(serialization.msgpack_serialize({"a": {"b": ONE}, "a/b": 2 * ONE}))
  assert "is damaged or no msgpack file of flax" in refused(path)


def test_a_reason_that_quotes_the_file_can_be_printed(tmp_path):
  path = tmp_path / "x.safetensors"
  head = b'{"a": {"dtype": "F\x7f2", "shape": [1], "data_offsets": [0, 4]}}'
  path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
  assert "is damaged or no safetensors file (" in refused(path)
