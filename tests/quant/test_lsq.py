import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from quant.estimators.base import to_parameter, to_scale
from quant.estimators.lsq import gradient_scale, initial_scale
from quant.estimators.lsq import lsq_values as lsq
from quant.grid import affine, fake_quant


def oracle(v, s, lower, upper, g, cotangent):
  """Equations 1 to 5 of the paper, element by element in float64; s broadcasts against v."""
  ratio = v / s
  values = np.round(np.clip(ratio, lower, upper)) * s
  by_scale = np.where(ratio <= lower, lower, np.where(ratio >= upper, upper, np.round(ratio) - ratio))
  shared = tuple(i for i in range(v.ndim) if np.ndim(s) == 0 or s.shape[i] == 1)
  ds = np.sum(cotangent * by_scale, axis=shared, keepdims=np.ndim(s) > 0) * g
  dv = cotangent * ((lower < ratio) & (ratio < upper))
  return values, dv, ds


@jax.jit
def run(v, s, lower, upper, g, cotangent):
  values, pull = jax.vjp(lambda v, s: lsq(v, s, lower, upper, g), v, s)
  return values, *pull(cotangent)


@pytest.mark.parametrize("lower, upper", [(-2, 1), (-8, 7), (-127, 127), (0, 3), (0, 255), (-3, 12), (-32768, 32767)])
@pytest.mark.parametrize(
  "shape, scale_shape", [((30, 20), ()), ((5, 4, 3, 6), (1, 1, 1, 6)), ((17,), ()), ((6, 9), (6, 1))]
)
def test_values_and_gradients_are_the_papers(shape, scale_shape, lower, upper):
  rng = np.random.default_rng(upper - lower)
  with jax.enable_x64(True):
    v, cotangent = rng.normal(size=shape), rng.normal(size=shape)
    s = np.exp(rng.normal(size=scale_shape)) * 1.5 / max(upper, -lower)
    found = run(v, s, lower, upper, 0.37, cotangent)
    for got, expected in zip(found, oracle(v, np.asarray(s), lower, upper, 0.37, cotangent)):
      # v/s itself is known to upper * 1e-16 only, which at 16 bits is more than 1e-12
      np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12 * max(1, np.max(np.abs(expected)), upper / 1000))


def test_hand_computed():
  # v/s = -3, -1.2, 0.4, 1.6, 3.2 on -2..2: rounding errors 0.2, -0.4, 0.4; ends -2 and 2
  with jax.enable_x64(True):
    v = np.asarray([-1.5, -0.6, 0.2, 0.8, 1.6])
    values, dv, ds = run(v, np.float64(0.5), -2, 2, 1.0, np.ones(5))
    np.testing.assert_allclose(values, [-1, -0.5, 0, 1, 1])
    np.testing.assert_array_equal(dv, [0, 1, 1, 1, 0])
    np.testing.assert_allclose(ds, -2 + 0.2 - 0.4 + 0.4 + 2, atol=1e-12)


def test_equals_autodiff_of_clamp_then_round():
  def composed(v, s):
    clipped = jnp.clip(v / s, -8.0, 7.0)
    return (clipped + jax.lax.stop_gradient(jnp.round(clipped) - clipped)) * s

  with jax.enable_x64(True):
    rng = np.random.default_rng(3)
    v, s, cotangent = rng.normal(size=(50, 8)), np.full((1, 8), 0.11), rng.normal(size=(50, 8))
    values, pull = jax.vjp(composed, jnp.asarray(v), jnp.asarray(s))
    for got, expected in zip(run(v, s, -8, 7, 1.0, cotangent), (values, *pull(jnp.asarray(cotangent)))):
      np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_the_mask_is_taken_before_rounding():
  # 7.3 steps rounds to the top code 7, yet lies outside the clip
  with jax.enable_x64(True):
    _, dv, ds = run(np.asarray([7.3]), np.float64(1.0), -8, 7, 1.0, np.ones(1))
  assert float(dv[0]) == 0 and abs(float(ds) - 7) < 1e-12


def test_the_start_value_and_the_gradients_factor():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 10)), jnp.float32)
  found = initial_scale(jnp.mean(jnp.abs(x)), 7)
  np.testing.assert_allclose(found, 2 * np.abs(np.asarray(x)).mean() / np.sqrt(7), rtol=1e-6)
  np.testing.assert_allclose(gradient_scale(400, 7), 1 / np.sqrt(400 * 7), rtol=1e-6)


def test_the_stored_parameter_keeps_the_scale_positive_and_passes_the_paper_gradient():
  with jax.enable_x64(True):
    rng = np.random.default_rng(5)
    v, cotangent = rng.normal(size=(9, 7)), rng.normal(size=(9, 7))
    t = to_parameter(jnp.float64(0.2))
    np.testing.assert_allclose(to_scale(t), 0.2, rtol=1e-14)
    found = jax.grad(lambda t: jnp.sum(lsq(jnp.asarray(v), to_scale(t), -8, 7, 0.5) * cotangent))(t)
    np.testing.assert_allclose(found, 0.2 * oracle(v, np.float64(0.2), -8, 7, 0.5, cotangent)[2], rtol=1e-12)
    assert float(to_scale(jnp.float64(-50))) > 0


@pytest.mark.parametrize("low, high", [(0.0, 3.0), (-1.0, 2.0), (-2.0, 0.0)])
def test_on_an_affine_grid_the_values_are_those_of_fake_quant(low, high):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(60, 11)) * 2, jnp.float32)
  grid = affine(jnp.float32(low), jnp.float32(high), 8)
  parameter = to_parameter(grid.scale)

  @jax.jit
  def learned(x, parameter):
    return lsq(x, to_scale(parameter), grid.qmin - grid.zero_point, grid.qmax - grid.zero_point, 0.1)

  same = dataclasses.replace(grid, scale=jax.jit(to_scale)(parameter))
  np.testing.assert_array_equal(learned(x, parameter), fake_quant(x, same))


def test_a_batch_over_devices_gives_the_scale_gradient_of_the_whole_batch():
  mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 10)), jnp.float32)

  def loss(scale, x):
    return jnp.sum(lsq(x, scale, -8, 7, 0.1) ** 2)

  whole = jax.grad(loss)(jnp.float32(0.2), x)
  mapped = jax.shard_map(
    jax.grad(lambda s, x: jax.lax.psum(loss(s, x), "d")),
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec("d")),
    out_specs=PartitionSpec(),
  )
  np.testing.assert_allclose(jax.jit(mapped)(jnp.float32(0.2), x), whole, rtol=1e-5)
  each = jax.pmap(jax.grad(loss), axis_name="d", in_axes=(None, 0))(jnp.float32(0.2), x.reshape(4, 4, 10))
  np.testing.assert_allclose(jnp.sum(each), whole, rtol=1e-5)
  per_row = jax.vmap(jax.grad(loss), (None, 0))(jnp.float32(0.2), x.reshape(4, 4, 10))
  np.testing.assert_allclose(per_row, each, rtol=1e-5)


def test_bfloat16_is_kept():
  x = jnp.ones((4, 4), jnp.bfloat16)
  out, pull = jax.vjp(lambda v, s: lsq(v, s, -8, 7), x, jnp.float32(0.25))
  dv, ds = pull(jnp.ones_like(out))
  assert (out.dtype, dv.dtype, ds.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


def test_the_scale_gradient_of_bfloat16_is_taken_before_the_values_are_rounded_to_it():
  rng = np.random.default_rng(2)
  v, cotangent = (jnp.asarray(rng.normal(size=(40, 9)), jnp.bfloat16) for _ in range(2))
  scale = jnp.float32(0.1037)  # s times a code is no bfloat16
  ds = jax.vjp(lambda s: lsq(v, s, -127, 127), scale)[1](cotangent)[0]
  expected = oracle(np.asarray(v, np.float64), np.float64(scale), -127, 127, 1.0, np.asarray(cotangent, np.float64))[2]
  np.testing.assert_allclose(ds, expected, rtol=1e-4, atol=1e-4)
