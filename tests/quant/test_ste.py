"""Straight-through rounding against its definition in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np

import quant


def test_values_and_gradients_are_those_of_the_definition():
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    x, cotangent, s, z = 3 * rng.normal(size=(40, 5)), rng.normal(size=(40, 5)), 0.21, -3
    values, pull = jax.vjp(lambda x, s: quant.ste()(x, quant.Grid(s, jnp.int32(z), 4)), jnp.asarray(x), jnp.float64(s))
    dx, ds = map(np.asarray, pull(jnp.asarray(cotangent)))
  code = np.round(x / s) + z
  np.testing.assert_allclose(values, s * (np.clip(code, -8, 7) - z), rtol=1e-12)
  np.testing.assert_array_equal(dx, cotangent * ((code >= -8) & (code <= 7)))
  assert ds == 0 and 0 < np.mean(dx == 0) < 1


def test_by_hand():
  # steps 7.4, 7.6 and -9: the first rounds to the highest code and keeps its gradient
  x = jnp.asarray([3.7, 3.8, -4.5])
  y, pull = jax.vjp(lambda x: quant.ste()(x, quant.Grid(jnp.float32(0.5), jnp.int32(0), 4)), x)
  np.testing.assert_array_equal(y, [3.5, 3.5, -4.0])
  np.testing.assert_array_equal(pull(jnp.ones(3))[0], [1, 0, 0])
