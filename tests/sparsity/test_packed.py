"""Packed masks come back as they were, along any axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsity
from leanax.core.errors import UserError


@pytest.mark.sampled(3)
@pytest.mark.parametrize("shape", [(1,), (8,), (9,), (3, 17), (5, 3, 2, 11)])
def test_round_trip(shape):
  mask = np.random.default_rng(0).random(shape) < 0.5
  for axis in range(-len(shape), len(shape)):
    packed = sparsity.pack(jnp.asarray(mask), axis)
    expected = list(shape)
    expected[axis] = -(-shape[axis] // 8)
    assert packed.bits.shape == tuple(expected) and packed.bits.dtype == jnp.uint8
    np.testing.assert_array_equal(packed.bits, np.packbits(mask, axis=axis))
    np.testing.assert_array_equal(jax.jit(sparsity.unpack)(packed), mask)


def test_a_leading_axis_may_be_added():
  masks = np.random.default_rng(0).random((3, 4, 5)) < 0.5
  packed = jax.vmap(lambda m: sparsity.pack(m, 0))(jnp.asarray(masks))
  np.testing.assert_array_equal(sparsity.unpack(packed), masks)


def test_no_such_axis():
  with pytest.raises(UserError, match=r"pack_axis 2 does not exist in a mask of shape \(3, 4\)"):
    sparsity.pack(jnp.ones((3, 4), bool), 2)
