"""Thresholds and top-k masks against numpy's stable sorts."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import sparsity
from leanax.core.errors import UserError
from sparsity import threshold

topk_mask = jax.jit(sparsity.topk_mask)
kth_magnitude = jax.jit(sparsity.kth_magnitude)
signed_mask = jax.jit(lambda x, keep: sparsity.topk_mask(x, keep, signed=True))
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def oracle_masks(xs, keep):
  """Sorts all entries by (magnitude falling, position rising) and keeps the first ones."""
  flat = np.concatenate([np.abs(np.asarray(x, np.float64)).reshape(-1) for x in xs])
  kept = np.zeros(flat.size, bool)
  kept[np.lexsort((np.arange(flat.size), -flat))[:keep]] = True
  parts = np.split(kept, np.cumsum([x.size for x in xs])[:-1])
  return [part.reshape(x.shape) for part, x in zip(parts, xs, strict=True)]


def values(rng, shape, dtype, ties):
  return (np.round(rng.normal(size=shape) * 2) if ties else rng.normal(size=shape)).astype(dtype)


def test_worked_case():
  x = jnp.array([[3.0, -2.0, 1.0], [2.0, -2.0, 0.0]])
  assert kth_magnitude(x, 1) == 3 and kth_magnitude(x, 2) == 2 and kth_magnitude(x, 6) == 0
  # Three magnitudes of 2, two of which fit: the first two in flat order.
  np.testing.assert_array_equal(topk_mask(x, 3), [[True, True, False], [True, False, False]])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [7, 2 * threshold.CHUNK + 5])
def test_equals_lexsort(dtype, ties, n):
  x = values(np.random.default_rng(n), n, dtype, ties)
  for keep in sorted({0, 1, n // 3, n // 2, n - 1, n}):
    np.testing.assert_array_equal(topk_mask(x, keep), oracle_masks([x], keep)[0])
    if keep:
      assert np.float64(kth_magnitude(x, keep)) == np.sort(np.abs(x.astype(np.float64)))[n - keep]


@pytest.mark.parametrize("size", [1, 13, threshold.SMALL, threshold.SMALL + threshold.BLOCK, threshold.SMALL + 5])
def test_all_equal_keeps_the_first(size):
  for keep in {0, 1, size // 2, *(threshold.SMALL + i for i in (-1, 0, 1)), size - 1, size}:
    if keep <= size:
      np.testing.assert_array_equal(topk_mask(np.full(size, -2.0, np.float32), keep), np.arange(size) < keep)


@hypothesis.given(
  x=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False)), share=st.floats(0, 1)
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_any_float_subnormal_and_infinite_too(x, share):
  keep = int(share * x.size)
  padded = np.concatenate([x, np.zeros(40 - x.size, np.float32)])  # one shape: one compilation
  np.testing.assert_array_equal(topk_mask(padded, keep), oracle_masks([padded], keep)[0])


def oracle_signed(xs, keep):
  """As `oracle_masks`, with the sign: NaN first, and -0 with +0."""
  flat = np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in xs])
  kept, nan = np.zeros(flat.size, bool), np.isnan(flat)
  kept[np.lexsort((np.arange(flat.size), np.where(nan, 0, -flat), ~nan))[:keep]] = True
  return [part.reshape(x.shape) for part, x in zip(np.split(kept, np.cumsum([x.size for x in xs])[:-1]), xs)]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [7, 2 * threshold.CHUNK + 5])
def test_signed_equals_a_stable_sort(dtype, n):
  x = values(np.random.default_rng(n), n, dtype, True)  # -0 and 0 among them
  for keep in sorted({0, 1, n // 3, n // 2, n - 1, n}):
    np.testing.assert_array_equal(signed_mask(x, keep), oracle_signed([x], keep)[0])


def test_signed_worked_case():
  x = jnp.array([-3.0, 1.0, -0.0, 0.0, -jnp.nan, -jnp.inf, jnp.inf, -1.0])
  ranks = [4, 6, 1, 2, 3, 7, 0, 5]  # NaN of either sign, infinity, 1, the zeros in flat order, -1, -3, -infinity
  for keep in range(9):
    np.testing.assert_array_equal(np.flatnonzero(signed_mask(x, keep)), sorted(ranks[:keep]))


@hypothesis.given(x=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32)), share=st.floats(0, 1))
@hypothesis.settings(max_examples=60, deadline=None)
def test_any_float_signed(x, share):
  keep = int(share * x.size)
  padded = np.concatenate([x, np.full(40 - x.size, -np.inf, np.float32)])  # one shape: one compilation
  x = np.where(np.isnan(padded), np.float32(np.nan), padded)  # NaN with equal bits
  np.testing.assert_array_equal(signed_mask(x, keep), oracle_signed([x], keep)[0])


def test_signed_magnitudes_are_magnitudes():
  x = values(np.random.default_rng(8), 1000, np.float32, True)
  for keep in (1, 300, 999):
    np.testing.assert_array_equal(signed_mask(np.abs(x), keep), topk_mask(x, keep))


def test_signed_float64():
  with jax.enable_x64(True):
    x = np.random.default_rng(0).normal(size=500)
    x[::7] = x[3]
    for keep in (50, 400):
      np.testing.assert_array_equal(signed_mask(x, keep), oracle_signed([x], keep)[0])


def test_nan_is_kept():
  mask = topk_mask(jnp.array([1.0, jnp.nan, jnp.inf, -2.0]), 2)
  np.testing.assert_array_equal(mask, [False, True, True, False])


def test_float64():
  with jax.enable_x64(True):
    x = np.random.default_rng(0).normal(size=500)
    x[::7] = x[3]
    np.testing.assert_array_equal(topk_mask(x, 123), oracle_masks([x], 123)[0])
    assert kth_magnitude(x, 123) == np.sort(np.abs(x))[-123]


@pytest.mark.parametrize("dtypes", [(np.float32,) * 3, (np.float32, np.float16, ml_dtypes.bfloat16)])
def test_several_leaves_rank_as_one(dtypes):
  rng = np.random.default_rng(1)
  xs = {name: values(rng, s, d, True) for name, s, d in zip("abc", [(30, 4), (7,), (5, 5, 5)], dtypes, strict=True)}
  for keep in (1, 17, 100, 251, 252):
    got = topk_mask(jax.tree.map(jnp.asarray, xs), keep)
    want = oracle_masks(list(xs.values()), keep)
    for mask, expected in zip(got.values(), want, strict=True):
      np.testing.assert_array_equal(mask, expected)


def test_both_selections_agree():
  rng = np.random.default_rng(2)
  by_digits, by_bits = (jax.jit(f, static_argnums=(2, 3)) for f in (threshold._radix_select, threshold._bit_select))
  for dtype, ties, signed in [
    (np.float32, False, False),
    (np.float32, True, False),
    (np.float16, True, False),
    (np.float32, True, True),
  ]:
    x, order = values(rng, 1000, dtype, ties), threshold.Order(jnp.dtype(dtype), signed)
    for k in (1, 300, 1000):
      a = by_digits((x,), jnp.int32(k), order, None)
      b = by_bits((x,), jnp.int32(k), order, None)
      assert a == b


def test_many_leaves_each_by_itself():
  rng = np.random.default_rng(7)
  shapes, keep = [(7, 3), (threshold.SMALL + 9,), (1,), (2, 2, 9)], [5, 60_000, 1, 36]
  xs = [values(rng, shape, np.float32, True) for shape in shapes] + [values(rng, (8,), np.float16, True)]
  masks = jax.jit(sparsity.topk_masks)(xs, jnp.array([*keep, 0], jnp.int32))
  for x, k, mask in zip(xs, [*keep, 0], masks, strict=True):
    np.testing.assert_array_equal(mask, oracle_masks([x], k)[0])
  xs = [-np.abs(x) for x in xs]  # below the zeros of a padding
  masks = jax.jit(lambda xs, keep: sparsity.topk_masks(xs, keep, signed=True))(xs, jnp.array([*keep, 0], jnp.int32))
  for x, k, mask in zip(xs, [*keep, 0], masks, strict=True):
    np.testing.assert_array_equal(mask, oracle_signed([x], k)[0])


@pytest.mark.parametrize("check_vma", [True, False])
def test_parts_on_devices_rank_as_the_whole(check_vma):
  devices = jax.device_count()
  x, y = (values(np.random.default_rng(s), (devices * 6, 5), np.float32, True) for s in (3, 4))
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
  part = jax.sharding.PartitionSpec("d")

  def run(x, y):
    masks = sparsity.topk_mask((x, y), 77, axis_name="d")
    return masks, sparsity.kth_magnitude((x, y), 77, axis_name="d")

  run = jax.shard_map(
    run, mesh=mesh, in_specs=part, out_specs=(part, jax.sharding.PartitionSpec()), check_vma=check_vma
  )
  masks, kth = jax.jit(run)(x, y)
  for mask, expected in zip(masks, oracle_masks([x, y], 77), strict=True):
    np.testing.assert_array_equal(mask, expected)
  assert kth == np.sort(np.abs(np.concatenate([x, y]).reshape(-1)))[-77]


def test_each_device_may_rank_its_own_part():
  x = values(np.random.default_rng(6), (jax.device_count(), 11), np.float32, True)
  part = jax.sharding.PartitionSpec("d")
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
  run = jax.jit(jax.shard_map(lambda x: sparsity.topk_mask(x, 4), mesh=mesh, in_specs=part, out_specs=part))
  for row, mask in zip(x, run(x), strict=True):
    np.testing.assert_array_equal(mask, oracle_masks([row], 4)[0])


def test_batched_values_and_counts():
  x = values(np.random.default_rng(5), (3, 50), np.float32, True)
  keep = jnp.array([5, 20, 50], jnp.int32)
  got = jax.jit(jax.vmap(sparsity.topk_mask))(x, keep)
  for row, mask, k in zip(x, got, keep, strict=True):
    np.testing.assert_array_equal(mask, oracle_masks([row], int(k))[0])
  np.testing.assert_array_equal(jax.jit(jax.vmap(sparsity.kth_magnitude, (0, None)))(x, 9), np.sort(np.abs(x))[:, -9])


def test_refuses():
  with pytest.raises(UserError, match="float leaves .* not int32"):
    sparsity.kth_magnitude(jnp.arange(3), 1)
  with pytest.raises(UserError, match=r"a count in 1\.\.3, not 4"):
    sparsity.kth_magnitude(jnp.ones(3), 4)
  with pytest.raises(UserError, match="not empty"):
    sparsity.topk_mask({}, 0)
  with pytest.raises(UserError, match="beyond int32"):
    jax.eval_shape(lambda x: sparsity.topk_mask(x, 1), jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32))
