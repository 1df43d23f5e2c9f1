"""Losses that divide by norms are right at any scale of the activations that float32 can hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd import maps as shared
from tests.kd.nets import batch, logits, maps
from tests.kd.test_at import attention64
from tests.kd.test_sp import oracle as similarity64

SCALES = (1e-12, 1e-20, 1e-30, 1e20, 1e30)
S, T = (maps(seed, (3, 3, 4)).astype(np.float32) for seed in (0, 1))
LOSSES = {
  "at": (kd.at("tap", "tap"), lambda s, t: ((attention64(s, 2) - attention64(t, 2)) ** 2).mean(-1)),
  "at, paper": (
    kd.at("tap", "tap", 3, paper=True),
    lambda s, t: np.linalg.norm(attention64(s, 3) - attention64(t, 3), axis=-1),
  ),
  "sp": (kd.sp("tap", "tap"), similarity64),
}


@functools.cache
def compiled(name):
  """(gradient of the student's tap, numbers) of a loss, one program for all scales."""

  def total(s, t):
    outputs = (kd.Outputs(jnp.asarray(logits(0), s.dtype), {"tap": x}) for x in (s, t))
    per_example = LOSSES[name][0](*outputs, batch())[0]
    return jnp.sum(per_example), per_example

  return jax.jit(jax.grad(total, has_aux=True))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_value_is_that_of_float64_and_the_gradient_finite(name, scale):
  oracle = LOSSES[name][1]
  s, t = S * np.float32(scale), T * np.float32(1 / scale if 1e-29 < scale < 1e29 else scale)
  (got, numbers), (plain, _) = compiled(name)(s, t), compiled(name)(S, t)
  np.testing.assert_allclose(numbers, oracle(s.astype(np.float64), t.astype(np.float64)), rtol=1e-4)
  np.testing.assert_allclose(np.asarray(got, np.float64) * scale, plain, rtol=1e-3, atol=1e-6)


@functools.cache
def numbers(name):
  """The numbers of a loss with default arguments, one program for all scales."""
  taps = ("tap", "late") if name == "kdsvd" else "tap"
  loss = getattr(kd, name)(taps, taps)
  return jax.jit(lambda s, t: loss(s, t, batch())[0])


@pytest.mark.parametrize("name", ["cc", "kdsvd", "nst", "pkt", "rkd"])
@pytest.mark.parametrize("scale", SCALES[:2] + SCALES[3:4])
def test_a_scale_does_not_matter(name, scale):
  def outputs(x, scale):
    maps = {"tap": x * np.float32(scale), "late": x[:, ::-1] ** 2 * np.float32(scale)}
    return kd.Outputs(jnp.asarray(logits(0), jnp.float32), {tap: jnp.asarray(each) for tap, each in maps.items()})

  want = numbers(name)(outputs(S, 1.0), outputs(T, 1.0))
  np.testing.assert_allclose(numbers(name)(outputs(S, scale), outputs(T, scale)), want, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("axes", [-1, (1, 2)])
def test_norms_of_every_scale_in_one_array(axes):
  """Against numpy in float64, with zeros, and with what is not finite."""
  x = np.zeros((9, 4, 5), np.float32)
  scales = [1e-35, 1e-30, 1e-12, 1.0, 1e12, 1e30, 1e37]
  x[:7] = np.random.default_rng(0).normal(size=(7, 4, 5)) * np.array(scales)[:, None, None]
  exact = np.linalg.norm(x.astype(np.float64), axis=axes)
  norm, unit = jax.jit(lambda x: (shared.norm(x, axes), shared.unit(x, axes)))(x)
  np.testing.assert_allclose(norm, exact, rtol=1e-6)
  safe = np.where(exact == 0, 1.0, exact).reshape(9, -1, 1)
  np.testing.assert_allclose(unit, x.astype(np.float64) / safe, rtol=1e-6)
  bad = np.array([[np.inf, 1.0], [np.nan, 1.0], [1.0, -np.inf]], np.float32)
  assert np.isnan(jax.jit(shared.unit)(bad)).all()
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(shared.unit(x))))(np.zeros((2, 3), np.float32))
  np.testing.assert_array_equal(gradient, 0.0)
