"""Against qwix's own code, on the same numbers. Run by scripts/check_peers.sh."""

import jax.numpy as jnp
import numpy as np
import pytest
import qwix

import quant

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(("bits", "dtype"), [(8, "int8"), (4, "int4")])
def test_codes_per_channel(bits, dtype):
  """qwix puts a channel's largest magnitude half a step beyond the highest code and uses the lowest code; on its grid,
  our codes and values are its own."""
  w = jnp.asarray(np.random.default_rng(0).normal(size=(64, 16)), jnp.float32)
  theirs = qwix.quantize(w, dtype, channelwise_axes=(1,))
  largest = jnp.max(jnp.abs(w), axis=0)
  np.testing.assert_allclose(theirs.scale[0], largest / (2 ** (bits - 1) - 0.5), rtol=1e-6)
  grid = quant.Grid(theirs.scale[0], jnp.zeros(16, jnp.int32), bits, axis=1)
  np.testing.assert_array_equal(quant.codes(w, grid), np.asarray(theirs.qvalue, np.int32))
  np.testing.assert_array_equal(quant.fake_quant(w, grid), qwix.dequantize(theirs))
