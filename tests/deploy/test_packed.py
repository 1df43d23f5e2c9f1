"""Packed files: every bit comes back, and the codes of weights are near the entropy of their histogram."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import quant
from leanax.core.errors import UserError
from leanax.deploy import pack, unpack
from leanax.deploy.packed import arrays, header


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


@pytest.mark.sampled(5)
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
