"""One file for a finished model: exact, and damage is found wherever it sits."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.store import leaves
from leanax.engine.store.model_file import load_tree, save_tree

META = {"model": "zoo.lenet:LeNet5", "edits": [{"fold": "bn"}], "rate": 0.1}


def make_tree():
  return {
    "params": {"layers": [{"kernel": jnp.arange(6.0).reshape(2, 3)}, {"kernel": jnp.ones((3, 1), jnp.bfloat16)}]},
    "codes": {"int4": jnp.arange(-8, 8, dtype=jnp.int4), "int8": np.arange(5, dtype=np.int8)},
    "key": jax.random.key(3),
    "mask": np.array([True, False]),
    "transposed": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
    "scalar": jnp.float32(0.25),
    "empty": jnp.zeros((0, 2)),
  }


def assert_same(a, b):
  a, b = named_leaves(a), named_leaves(b)
  assert sorted(a) == sorted(b)
  for name in a:
    x, y = (jax.random.key_data(v) if name == "key" else v for v in (a[name], b[name]))
    assert (x.dtype, x.shape) == (y.dtype, y.shape), name
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), name


def test_round_trip(tmp_path):
  path, tree = tmp_path / "deep" / "model.safetensors", make_tree()
  save_tree(path, tree, META)
  loaded, meta = load_tree(path)
  assert meta == META
  assert_same(loaded, tree)
  assert sorted(loaded["params"]["layers"]) == ["0", "1"]
  target = jax.eval_shape(make_tree)
  structured, _ = load_tree(path, target)
  assert jax.tree.structure(structured) == jax.tree.structure(tree)
  assert_same(structured, tree)
  assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
  # another reader finds the plain arrays under the same names
  np.testing.assert_array_equal(safetensors.numpy.safe_open(path, "numpy").get_tensor("transposed"), tree["transposed"])


def test_loading_compiles_nothing(tmp_path):
  path, compiled = tmp_path / "model.safetensors", []
  save_tree(path, {"kernel": np.ones((3, 17), np.float32), "codes": np.ones((5, 19), np.int8)}, {})
  note = lambda name, *_, **__: compiled.append(name)
  jax.monitoring.register_event_duration_secs_listener(note)
  loaded, _ = load_tree(path)
  jax.monitoring.unregister_event_duration_listener(note)
  assert all(isinstance(leaf, jax.Array) for leaf in loaded.values()) and compiled == []


def test_every_flipped_byte_is_found(tmp_path):
  path = tmp_path / "model.safetensors"
  tree = {"a": jnp.arange(3.0), "b": jnp.arange(4, dtype=jnp.int8)}
  save_tree(path, tree, {"name": "x"})
  sound = path.read_bytes()
  for place in range(0, len(sound), 3):
    broken = bytearray(sound)
    broken[place] ^= 1 << (place % 8)
    path.write_bytes(broken)
    try:
      loaded, meta = load_tree(path)
    except UserError as error:
      assert "\n" not in str(error), place
    else:  # a blank in the header may change without changing what it says
      assert meta == {"name": "x"}, place
      assert_same(loaded, tree)
  broken = bytearray(sound)
  broken[-1] ^= 1
  path.write_bytes(broken)
  with pytest.raises(UserError, match="model.safetensors is damaged: leaf 'b' does not match its checksum"):
    load_tree(path)
  path.write_bytes(sound[:-5])
  with pytest.raises(UserError, match="is damaged or no safetensors file"):
    load_tree(path)


def described(path, text, arrays):
  """A file with this description, its checksum sound as anyone can make it."""
  safetensors.numpy.save_file(arrays, path, {"leanax": f"{zlib.crc32(text.encode())} {text}"})


LEAF = {"a": [[2], "float32", zlib.crc32(np.ones(2, np.float32).tobytes()), None]}
DESCRIPTIONS = {
  "no json": "import os",
  "a list": [],
  "a number": 3,
  "no format": {"meta": {}, "leaves": LEAF},
  "a format of text": {"format": "x", "meta": {}, "leaves": LEAF},
  "no leaves": {"format": 1, "meta": {}},
  "leaves in a list": {"format": 1, "meta": {}, "leaves": [1]},
  "meta no group": {"format": 1, "meta": 3, "leaves": LEAF},
  "half a leaf": {"format": 1, "meta": {}, "leaves": {"a": [[2], "float32"]}},
  "objects": {"format": 1, "meta": {}, "leaves": {"a": [[2], "object", 1, None]}},
  "a dtype that runs": {"format": 1, "meta": {}, "leaves": {"a": [[2], "__import__('os')", 1, None]}},
  "more than memory holds": {"format": 1, "meta": {}, "leaves": {"a": [[1 << 60], "float32", 1, None]}},
  "more than numpy counts": {"format": 1, "meta": {}, "leaves": {"a": [[1 << 40, 1 << 40], "float32", 1, None]}},
  "unknown keys": {"format": 1, "meta": {}, "leaves": {"a": [[2], "key<x>", 1, "os:system"]}},
  "an infinite size": '{"format": 1, "meta": {}, "leaves": {"a": [[1e999], "float32", 1, null]}}',
  "an infinite checksum": '{"format": 1, "meta": {}, "leaves": {"a": [[2], "float32", 1e999, null]}}',
  "a size of text": {"format": 1, "meta": {}, "leaves": {"a": [["2"], "float32", LEAF["a"][2], None]}},
  "a size that is true": {"format": 1, "meta": {}, "leaves": {"a": [[True, 2], "float32", LEAF["a"][2], None]}},
  "a checksum of text": {"format": 1, "meta": {}, "leaves": {"a": [[2], "float32", str(LEAF["a"][2]), None]}},
  "a key of a number": {"format": 1, "meta": {}, "leaves": {"a": [[2], "float32", LEAF["a"][2], 7]}},
  "many keys": {"format": 1, "meta": {}, "leaves": {"a": [[1 << 40], "key<fry>", 1, "threefry2x32"]}},
  "a negative size": {"format": 1, "meta": {}, "leaves": {"a": [[-2], "float32", 1, None]}},
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_an_invalid_description_is_damage(tmp_path, kind):
  path = tmp_path / "model.safetensors"
  text = DESCRIPTIONS[kind]
  described(path, text if isinstance(text, str) else json.dumps(text), {"a": np.ones(2, np.float32)})
  with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
    load_tree(path)


def test_a_claim_is_not_allocated(tmp_path, monkeypatch):
  path, made = tmp_path / "model.safetensors", []
  monkeypatch.setattr(np, "empty", lambda shape, *_: made.append(shape))
  for leaf in ([[1 << 40], "float32", 1, None], [[1 << 40], "key<fry>", 1, "threefry2x32"]):
    described(path, json.dumps({"format": 1, "meta": {}, "leaves": {"a": leaf}}), {"a": np.ones(2, np.float32)})
    with pytest.raises(UserError, match="leaf 'a' does not match its checksum"):
      load_tree(path)
  assert made == []


@pytest.mark.parametrize(
  "names", [("a", "a/b"), ("a/b", "a"), ("a", "a/b/c"), ("a/b/c", "a/b"), ("/".join("x" * 200),)]
)
def test_a_leaf_inside_a_leaf_is_damage(tmp_path, names):
  path = tmp_path / "model.safetensors"
  text = json.dumps({"format": 1, "meta": {}, "leaves": dict.fromkeys(names, LEAF["a"])})
  with pytest.raises(ValueError, match="does not fit into one tree"):
    leaves.nested(dict.fromkeys(names, np.ones(2)))
  described(path, text, dict.fromkeys(names, np.ones(2, np.float32)))
  with pytest.raises(UserError, match=r"model\.safetensors is damaged: its description"):
    load_tree(path)


def test_a_deep_description_is_damage(tmp_path):
  path = tmp_path / "model.safetensors"
  nested = "[" * 100_000 + "]" * 100_000
  described(path, nested, {"a": np.ones(2, np.float32)})
  with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
    load_tree(path)


def test_mistakes(tmp_path):
  path = tmp_path / "model.safetensors"
  with pytest.raises(UserError, match="there is no file .*model.safetensors"):
    load_tree(path)
  safetensors.numpy.save_file({"a": np.ones(2)}, path)
  with pytest.raises(UserError, match="is no model that this program saved"):
    load_tree(path)
  text = json.dumps({"format": 2})
  safetensors.numpy.save_file({}, path, {"leanax": f"{zlib.crc32(text.encode())} {text}"})
  with pytest.raises(UserError, match="has format 2, newer than this program's 1"):
    load_tree(path)
  save_tree(path, {"a": np.ones(2)})
  with pytest.raises(UserError, match=r"leaf 'a' has shape \(2,\) there and \(3,\) in this run"):
    load_tree(path, {"a": np.ones(3)})
