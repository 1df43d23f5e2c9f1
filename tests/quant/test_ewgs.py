"""EWGS against section 3 of its paper, element by element in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import quant
from leanax.core.errors import UserError


def oracle(x, s, lower, upper, delta, g):
  """Values, and gradients for x and s, with numbers scaled to [0, 1] as the paper has them."""
  span = upper - lower
  x_n = np.clip((x / s - lower) / span, 0, 1)  # the clipped and normalised input
  x_q = np.round(x / s).clip(lower, upper) / span - lower / span
  inside = (x / s >= lower) & (x / s <= upper)
  g_q = g * s * span  # of x_q, for the output s (span x_q + lower)
  g_n = g_q * (1 + delta * np.sign(g_q) * (x_n - x_q))
  by_s = g * (span * x_q + lower) - np.where(inside, g_n * x / s**2 / span, 0)
  return s * (span * x_q + lower), np.where(inside, g_n / (s * span), 0), by_s.sum()


def vjp(delta, x, s, bits, zero_point, g):
  run = lambda x, s: quant.ewgs(delta)(x, quant.Grid(s, jnp.int32(zero_point), bits))
  values, pull = jax.vjp(run, jnp.asarray(x), jnp.asarray(s))
  return values, *pull(jnp.asarray(g, values.dtype))


@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.7])
@pytest.mark.parametrize("bits, zero_point", [(2, 0), (4, -8), (8, 37)])
def test_values_and_gradients_are_the_papers(delta, bits, zero_point):
  rng = np.random.default_rng(bits)
  x, g, s = rng.normal(size=(30, 7)), rng.normal(size=(30, 7)), 2.0**-bits
  lower, upper = (end - zero_point for end in quant.limits(bits))
  with jax.enable_x64(True):
    found = vjp(delta, x, s, bits, zero_point, g)
  for got, want in zip(found, oracle(x, s, lower, upper, delta, g), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12 * max(1, np.max(np.abs(want))))


def test_by_hand():
  # Steps 1.25, 0.75, -2, -2.1 and 1 on -2..1, whose span is 3: errors 0.25 (clipped), -0.25, 0, (clipped) and 0.
  with jax.enable_x64(True):
    values, dx, ds = vjp(0.6, [0.625, 0.375, -1.0, -1.05, 0.5], np.float64(0.5), 2, 0, [1.0, -2.0, 3.0, 1.0, 1.0])
  np.testing.assert_array_equal(values, [0.5, 0.5, -1.0, -1.0, 0.5])
  np.testing.assert_allclose(dx, [0, -2 * (1 + 0.6 * 0.25 / 3), 3, 0, 1], rtol=1e-12)
  np.testing.assert_allclose(ds, 1 - 2 + 2 * 1.05 * 0.75 - 6 + 6 - 2 + 1 - 1, rtol=1e-12)


def test_without_delta_it_is_lsq_but_for_its_factor_and_ends():
  x, g, s = np.random.default_rng(0).normal(size=99), np.random.default_rng(1).normal(size=99), 0.13
  with jax.enable_x64(True):
    _, dx, ds = vjp(0.0, x, s, 4, 0, g)
    _, pull = jax.vjp(lambda x, s: quant.lsq()(x, quant.Grid(s, jnp.int32(0), 4)), jnp.asarray(x), jnp.float64(s))
    want_x, want_s = pull(jnp.asarray(g))
  np.testing.assert_array_equal(dx, want_x)
  np.testing.assert_allclose(ds, np.asarray(want_s) * np.sqrt(99 * 7), rtol=1e-6)  # LSQ's factor is a float32
  assert quant.ewgs(0.0).straight and not quant.ewgs().straight


def test_what_is_not_finite_stays_so():
  values, dx, ds = vjp(0.1, np.float32([np.nan, np.inf, 0.3]), np.float32(0.1), 4, 0, np.float32([1.0, 1.0, np.nan]))
  assert np.isnan(values[0]) and values[1] == np.float32(0.1) * 7 and np.isnan(ds) and np.isnan(dx[2])


def test_in_a_model_and_an_optax_loop():
  """In bfloat16 activations too; the loss falls, and the scales move."""
  rng = np.random.default_rng(0)
  variables = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)}
  x, y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((64, 6), (64, 4)))
  model = quant.quantize(lambda v, x: jax.nn.relu(x) @ v["w"], quant.policy("w3a3 ewgs", ends=None))
  qparams, state = model.init(variables, x)
  qparams, state = model.freeze(qparams, model.observe(state, variables, x)[1])

  def loss(trained):
    return jnp.mean((model.apply(trained[1], state, trained[0], x)[0] - y) ** 2)

  trained, tx = (variables, qparams), optax.sgd(0.05)
  slots, step = tx.init(trained), jax.jit(jax.value_and_grad(loss))
  losses = []
  for _ in range(30):
    value, gradient = step(trained)
    updates, slots = tx.update(gradient, slots)
    trained = optax.apply_updates(trained, updates)
    losses.append(float(value))
  assert losses[-1] < 0.7 * losses[0] and np.all(trained[1]["w"] != qparams["w"])


@pytest.mark.parametrize("delta", [-1.0, np.nan, "1"])
def test_what_is_no_delta_is_refused(delta):
  with pytest.raises(UserError, match="ewgs: delta is .*; expected a number, 0 or more"):
    quant.ewgs(delta)
