"""Every quantizer and every observer of quant, found by walking the package, through one battery.

A quantizer is a method of quant whose first parameters are `x, scale, lower, upper` (codes less the zero point, as LSQ
writes it); `fake_quant` over a Grid is put into that form here. An observer is a method of quant.observers.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import quant
from leanax.core.methods import methods
from quant import observers
from tests.conformance.exceptions import EXCEPTIONS, cases

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
CHECKS = []


def on_grid(x, scale, lower, upper):
  """`fake_quant` as a quantizer: a grid of eight bits is cut to [lower, upper] by its zero point and range."""
  bits = int(np.log2(int(upper) - int(lower) + 1).__ceil__())
  narrow = int(upper) - int(lower) + 1 < 2**bits
  zero_point = jnp.asarray(quant.limits(bits, True, narrow)[0] - int(lower), jnp.int32)
  axis = None if scale.ndim == 0 else int(np.argmax(scale.shape))
  scale = scale if axis is None else scale.reshape(-1)
  return quant.fake_quant(x, quant.Grid(scale, jnp.broadcast_to(zero_point, scale.shape), bits, True, narrow, axis))


FORM = ["x", "scale", "lower", "upper"]
QUANTIZERS = {n: f for n, f in methods(quant).items() if list(inspect.signature(f).parameters)[:4] == FORM}
QUANTIZERS["fake_quant"] = on_grid
OBSERVERS = methods(observers)


def every_quantizer(test):
  check = test.__name__.removeprefix("test_")
  CHECKS.append(check)
  return pytest.mark.parametrize("name", cases("quant", QUANTIZERS, check))(test)


def every_observer(test):
  check = test.__name__.removeprefix("test_")
  CHECKS.append(check)
  return pytest.mark.parametrize("name", cases("quant", OBSERVERS, check))(test)


def ends(bits, kind):
  """(lower, upper): symmetric and narrow, all two's complement codes, or unsigned."""
  half = 2 ** (bits - 1)
  return {"narrow": (-(half - 1), half - 1), "full": (-half, half - 1), "unsigned": (0, 2**bits - 1)}[kind]


def values(seed=0, shape=(64, 8), scale=1.0):
  return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


SCALE = jnp.float32(0.037)
KINDS = ("narrow", "full", "unsigned")


def test_the_walk_finds_them():
  assert {"lsq", "fake_quant"} <= set(QUANTIZERS)
  assert {"min_max", "ema"} <= set(OBSERVERS)


@every_quantizer
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_grid_and_error(name, bits, kind):
  """Codes are whole numbers within the ends, all are reached, and the error inside is at most half a step."""
  lower, upper = ends(bits, kind)
  x = jnp.linspace(1.5 * lower * SCALE - 0.1, 1.5 * upper * SCALE + 0.1, 4 * 2**bits + 1, dtype=jnp.float32)
  y = QUANTIZERS[name](x, SCALE, lower, upper)
  assert y.shape == x.shape and y.dtype == x.dtype
  q = np.asarray(y, np.float64) / float(SCALE)
  np.testing.assert_allclose(q, np.round(q), atol=1e-4)
  assert set(np.round(q).astype(int)) == set(range(lower, upper + 1))
  inside = (np.asarray(x) >= lower * float(SCALE)) & (np.asarray(x) <= upper * float(SCALE))
  assert np.max(np.abs(np.asarray(y - x))[inside]) <= float(SCALE) / 2 * (1 + 1e-5)
  assert np.all(np.diff(np.asarray(y)) >= 0)


@every_quantizer
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_idempotent(name, bits, kind):
  y = QUANTIZERS[name](values(), SCALE, *ends(bits, kind))
  np.testing.assert_array_equal(QUANTIZERS[name](y, SCALE, *ends(bits, kind)), y)


@every_quantizer
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_zero_stays_zero(name, bits, kind):
  x = values().at[::3].set(0.0)
  y = QUANTIZERS[name](x, SCALE, *ends(bits, kind))
  assert jnp.all(y[::3] == 0)


@every_quantizer
@pytest.mark.parametrize("bits", WIDTHS)
def test_negation_symmetry(name, bits):
  x = jnp.concatenate([values().reshape(-1), SCALE * (jnp.arange(-4, 5, dtype=jnp.float32) + 0.5)])
  lower, upper = ends(bits, "narrow")
  np.testing.assert_array_equal(QUANTIZERS[name](-x, SCALE, lower, upper), -QUANTIZERS[name](x, SCALE, lower, upper))


@every_quantizer
def test_dequantized_codes(name):
  """Simulation equals scale times integer codes, bit for bit, under jit too."""
  lower, upper = ends(8, "narrow")
  x = values(scale=2.0)
  grid = quant.Grid(SCALE, jnp.int32(0), 8, True, True)
  expected = quant.dequantize(quant.codes(x, grid), grid)
  np.testing.assert_array_equal(QUANTIZERS[name](x, SCALE, lower, upper), expected)
  np.testing.assert_array_equal(jax.jit(lambda x: QUANTIZERS[name](x, SCALE, lower, upper))(x), expected)


@every_quantizer
def test_channels_are_independent(name):
  lower, upper = ends(4, "narrow")
  x, scale = values(), jnp.asarray(0.02 * np.arange(1, 9), jnp.float32)
  together = QUANTIZERS[name](x, scale[None, :], lower, upper)
  for channel in range(8):
    alone = QUANTIZERS[name](x[:, channel], scale[channel], lower, upper)
    np.testing.assert_array_equal(together[:, channel], alone)


@every_quantizer
def test_straight_through(name):
  """The gradient of x passes unchanged well inside the range, and not at all well outside it."""
  lower, upper = ends(4, "narrow")
  steps = jnp.asarray([-30.2, -8.6, -6.2, -0.3, 0.0, 0.4, 3.3, 6.3, 8.7, 41.0], jnp.float32)
  cotangent = jnp.arange(1.0, 11.0, dtype=jnp.float32)
  _, pull = jax.vjp(lambda x: QUANTIZERS[name](x, SCALE, lower, upper), steps * SCALE)
  expected = jnp.where(jnp.abs(steps) < 8, cotangent, 0.0)
  np.testing.assert_array_equal(pull(cotangent)[0], expected)


@every_quantizer
def test_one_device_equals_many(name):
  lower, upper = ends(4, "narrow")
  mesh = Mesh(np.asarray(jax.devices()[:4]), ("devices",))

  def step(x, scale):
    return QUANTIZERS[name](x, scale, lower, upper)

  split = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P("devices"), P()), out_specs=P("devices")))
  np.testing.assert_array_equal(split(values(), SCALE), step(values(), SCALE))


@every_observer
def test_observer_begins_with_the_first_batch(name):
  """The first batch is taken whole; no gradient passes; the count goes up by one."""
  x = values(scale=3.0)
  seen = OBSERVERS[name]()(observers.empty(), x)
  assert int(seen.count) == 1
  assert seen.low == jnp.min(x) and seen.high == jnp.max(x)
  gradient = jax.grad(lambda x: OBSERVERS[name]()(observers.empty(), x).high)(x)
  assert jnp.all(gradient == 0)


@every_observer
def test_observer_stays_within_what_was_seen(name):
  state, batches = observers.empty(), [values(seed, scale=1.0 + seed) for seed in range(5)]
  for x in batches:
    state = OBSERVERS[name]()(state, x)
  everything = jnp.concatenate(batches)
  assert jnp.min(everything) <= state.low < state.high <= jnp.max(everything)
  assert int(state.count) == 5


@every_observer
def test_observer_over_devices(name):
  """Many devices with a share of each batch see what one device with the whole batch sees, and they all agree."""
  mesh = Mesh(np.asarray(jax.devices()[:4]), ("devices",))
  observe = OBSERVERS[name]()

  def local(state, x):
    return observe(state, x, axis_name="devices")

  split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P("devices")), out_specs=P()))
  one = many = observers.empty()
  for seed in range(3):
    one, many = observe(one, values(seed)), split(many, values(seed))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, many)


def test_exceptions_name_what_exists():
  known = {*QUANTIZERS, *OBSERVERS}
  assert [key for key in EXCEPTIONS if key[0] == "quant" and (key[1] not in known or key[2] not in CHECKS)] == []
