"""Every estimator, observer and format of quant, found by walking the package, through the battery of its kind.

A method's kind is what it returns. `fake_quant` goes through what holds of any rounding too.
"""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import quant
from leanax.core.errors import UserError
from leanax.core.methods import methods
from quant import estimators, formats, observers
from quant.estimators import Estimator, Placed
from quant.formats import Format
from quant.observers import Observer
from tests.conformance.exceptions import EXCEPTIONS, cases
from tests.numbers import array

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
CHECKS = []


ESTIMATORS = {name: method() for name, method in methods(estimators).items()}
OBSERVERS = {name: method() for name, method in methods(observers).items()}
FORMATS = {name: method() for name, method in methods(formats).items()}
KINDS_OF = {"estimators": (Estimator, ESTIMATORS), "observers": (Observer, OBSERVERS), "formats": (Format, FORMATS)}
SHARED = {"__init__", "base"}  # files of a kind's folder that are no methods
ROUNDINGS = {**ESTIMATORS, "fake_quant": quant.fake_quant}


def rounded(name, x, scale, lower, upper):
  """Rounding to a grid of codes less the zero point in [lower, upper]; `scale` is the grid's own, of x's rank or ()."""
  bits = int(np.log2(int(upper) - int(lower) + 1).__ceil__())
  narrow = int(upper) - int(lower) + 1 < 2**bits
  zero_point = jnp.asarray(quant.limits(bits, True, narrow)[0] - int(lower), jnp.int32)
  axis = None if scale.ndim == 0 else int(np.argmax(scale.shape))
  scale = scale if axis is None else scale.reshape(-1)
  zero_points = jnp.broadcast_to(zero_point, scale.shape)
  return ROUNDINGS[name](x, quant.Grid(scale, zero_points, bits, True, narrow, axis))


def step(name, scale=0.037):
  """A scale on which an estimator's grid lies: it may keep to some scales, such as powers of two."""
  scale = jnp.asarray(scale, jnp.float32)
  return ESTIMATORS[name].scale(scale) if name in ESTIMATORS else scale


def every_rounding(test):
  check = test.__name__.removeprefix("test_")
  CHECKS.append(check)
  return pytest.mark.parametrize("name", cases("quant", ROUNDINGS, check))(test)


def every_estimator(test):
  check = test.__name__.removeprefix("test_")
  CHECKS.append(check)
  return pytest.mark.parametrize("name", cases("quant", ESTIMATORS, check))(test)


def every_observer(test):
  check = test.__name__.removeprefix("test_")
  CHECKS.append(check)
  return pytest.mark.parametrize("name", cases("quant", OBSERVERS, check))(test)


def every_format(test):
  check = test.__name__.removeprefix("test_")
  CHECKS.append(check)
  return pytest.mark.parametrize("name", cases("quant", FORMATS, check))(test)


def ends(bits, kind):
  """(lower, upper): symmetric and narrow, all two's complement codes, or unsigned."""
  half = 2 ** (bits - 1)
  return {"narrow": (-(half - 1), half - 1), "full": (-half, half - 1), "unsigned": (0, 2**bits - 1)}[kind]


def values(seed=0, shape=(64, 8), scale=1.0):
  return array(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


KINDS = ("narrow", "full", "unsigned")


def test_the_walk_finds_them():
  assert {"ste", "lsq", "tqt"} <= set(ESTIMATORS)
  assert {"min_max", "ema", "percentile"} <= set(OBSERVERS)
  assert {"integer", "power_of_two"} <= set(FORMATS)


@pytest.mark.parametrize("folder", KINDS_OF)
def test_every_file_of_a_kind_is_in_its_battery(folder):
  """A file that the walk does not find, or that returns something else, would not be tested."""
  kind, found = KINDS_OF[folder]
  files = {path.stem for path in (pathlib.Path(quant.__file__).parent / folder).glob("*.py")} - SHARED
  assert files == set(found)
  assert {name: type(method) for name, method in found.items()} == dict.fromkeys(found, kind)


def test_every_folder_of_quant_is_a_kind_with_a_battery():
  folders = {path.parent.name for path in pathlib.Path(quant.__file__).parent.glob("*/__init__.py")}
  assert folders == set(KINDS_OF)


@pytest.mark.sampled(3)
@every_rounding
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_grid_and_error(name, bits, kind):
  """Codes are whole numbers within the ends, all are reached, and the error inside is at most half a step."""
  (lower, upper), scale = ends(bits, kind), step(name)
  x = jnp.linspace(1.5 * lower * scale - 0.1, 1.5 * upper * scale + 0.1, 4 * 2**bits + 1, dtype=jnp.float32)
  y = rounded(name, x, scale, lower, upper)
  assert y.shape == x.shape and y.dtype == x.dtype
  q = np.asarray(y, np.float64) / float(scale)
  np.testing.assert_allclose(q, np.round(q), atol=1e-4)
  assert set(np.round(q).astype(int)) == set(range(lower, upper + 1))
  inside = (np.asarray(x) >= lower * float(scale)) & (np.asarray(x) <= upper * float(scale))
  assert np.max(np.abs(np.asarray(y - x))[inside]) <= float(scale) / 2 * (1 + 1e-5)
  assert np.all(np.diff(np.asarray(y)) >= 0)


@every_rounding
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_idempotent(name, bits, kind):
  y = rounded(name, values(), step(name), *ends(bits, kind))
  np.testing.assert_array_equal(rounded(name, y, step(name), *ends(bits, kind)), y)


@every_rounding
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_zero_stays_zero(name, bits, kind):
  x = values().at[::3].set(0.0)
  y = rounded(name, x, step(name), *ends(bits, kind))
  assert jnp.all(y[::3] == 0)


@every_rounding
@pytest.mark.parametrize("bits", WIDTHS)
def test_negation_symmetry(name, bits):
  x = jnp.concatenate([values().reshape(-1), step(name) * (jnp.arange(-4, 5, dtype=jnp.float32) + 0.5)])
  lower, upper = ends(bits, "narrow")
  np.testing.assert_array_equal(
    rounded(name, -x, step(name), lower, upper), -rounded(name, x, step(name), lower, upper)
  )


@every_rounding
def test_integers_are_refused(name):
  with pytest.raises(UserError, match="values on a grid of an array of int32; expected floats"):
    rounded(name, jnp.arange(4), step(name), -7, 7)


@every_rounding
def test_dequantized_codes(name):
  """Simulation equals scale times integer codes, bit for bit, under jit too."""
  lower, upper = ends(8, "narrow")
  x = values(scale=2.0)
  grid = quant.Grid(step(name), jnp.int32(0), 8, True, True)
  expected = quant.dequantize(quant.codes(x, grid), grid)
  np.testing.assert_array_equal(rounded(name, x, step(name), lower, upper), expected)
  np.testing.assert_array_equal(jax.jit(lambda x: rounded(name, x, step(name), lower, upper))(x), expected)


@pytest.mark.sampled(3)
@every_rounding
def test_channels_are_independent(name):
  lower, upper = ends(4, "narrow")
  x, scale = values(), step(name, 0.02 * np.arange(1, 9))
  together = rounded(name, x, scale[None, :], lower, upper)
  for channel in range(8):
    alone = rounded(name, x[:, channel], scale[channel], lower, upper)
    np.testing.assert_array_equal(together[:, channel], alone)


@every_rounding
def test_straight_through(name):
  """The gradient of x passes well inside the range, and not at all well outside it; unchanged, unless it is scaled."""
  lower, upper = ends(4, "narrow")
  steps = jnp.asarray([-30.2, -8.6, -6.2, -0.3, 0.0, 0.4, 3.3, 6.3, 8.7, 41.0], jnp.float32)
  cotangent = jnp.arange(1.0, 11.0, dtype=jnp.float32)
  _, pull = jax.vjp(lambda x: rounded(name, x, step(name), lower, upper), steps * step(name))
  inside = jnp.abs(steps) < 8
  if getattr(ROUNDINGS[name], "straight", True):
    np.testing.assert_array_equal(pull(cotangent)[0], jnp.where(inside, cotangent, 0.0))
    return
  np.testing.assert_array_equal(jnp.sign(pull(cotangent)[0]), inside)
  assert jnp.any(pull(cotangent)[0] != jnp.where(inside, cotangent, 0.0))
  levels = jnp.arange(lower + 1, upper, dtype=jnp.float32)
  _, pull = jax.vjp(lambda x: rounded(name, x, jnp.float32(0.5), lower, upper), 0.5 * levels)
  np.testing.assert_array_equal(pull(levels)[0], levels)


@every_rounding
def test_one_device_equals_many(name):
  lower, upper = ends(4, "narrow")
  mesh = Mesh(np.asarray(jax.devices()[:4]), ("devices",))

  def run(x, scale):
    return rounded(name, x, scale, lower, upper)

  split = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(P("devices"), P()), out_specs=P("devices")))
  np.testing.assert_array_equal(split(values(), step(name)), run(values(), step(name)))


@every_estimator
def test_the_scale_of_the_grid_is_settled(name):
  """A scale of the grid is one that the estimator makes of itself; the order of scales stays."""
  scales = jnp.asarray(np.sort(np.random.default_rng(0).lognormal(size=50)), jnp.float32)
  found = ESTIMATORS[name].scale(scales)
  np.testing.assert_array_equal(ESTIMATORS[name].scale(found), found)
  assert np.all(found >= scales * (1 - 1e-4)) and np.all(np.diff(found) >= 0)


@every_estimator
def test_where_training_starts(name):
  """A positive scale for each of the grid's, of zeros too; the network's input starts as an untrained scale does."""
  init = ESTIMATORS[name].init
  for magnitude in (jnp.zeros(3), jnp.asarray([0.0, 0.2, 3.0])):
    for bits in (2, 4, 8):
      grid = quant.symmetric(2.5 * magnitude, bits, axis=0)
      for start in ("auto", "lsq", "range"):
        found = grid.scale if init is None else init(estimators.Statistics(magnitude, grid), start)
        assert found.shape == (3,) and np.all(found > 0) and np.all(np.isfinite(found))
        assert start != "range" or np.array_equal(found, grid.scale)


@every_estimator
def test_clipped_values_move_the_scale_by_the_finite_difference(name):
  """There the values are a code times the scale, and their derivative by it exists; an untrained scale has none."""
  with jax.enable_x64(True):
    x, scale = jnp.asarray([-9.0, -4.0, 5.0, 11.0]), jnp.float64(0.25)

    def run(scale, x):
      return ESTIMATORS[name].values(Placed(x, scale, jnp.int32(1), (-8, 7), 1))

    found = [jax.grad(lambda s, one: run(s, one[None])[0])(scale, one) for one in x]
    finite = (run(scale + 2**-20, x) - run(scale - 2**-20, x)) / 2**-19
    trained = float(ESTIMATORS[name].trains)
    factor = {"lsq": 1 / np.sqrt(6)}.get(name, trained)  # LSQ scales it by 1/sqrt(N Q_P)
    np.testing.assert_allclose(found, factor * finite, rtol=1e-6)


@every_estimator
def test_steps_are_the_values_over_the_scale_with_their_gradient(name):
  """Products are taken on codes: the same numbers and gradients must come of steps and of values."""
  x, scale, cotangent = values(scale=0.3), step(name), values(1)

  def run(of, x, scale):
    return of(Placed(x, scale, jnp.int32(3), (-8, 7), 8))

  y, pull = jax.vjp(lambda *given: run(ESTIMATORS[name].values, *given), x, scale)
  steps, pull_steps = jax.vjp(lambda *given: run(ESTIMATORS[name].steps, *given), x, scale)
  np.testing.assert_array_equal(y, scale * steps)
  np.testing.assert_array_equal(steps, np.round(steps))
  assert np.min(steps) == -11 and np.max(steps) == 4
  jax.tree.map(np.testing.assert_array_equal, pull(cotangent), pull_steps(cotangent))


class Seen(NamedTuple):
  low: jax.Array
  high: jax.Array
  magnitude: jax.Array


@functools.cache
def compiled(name):
  """(update, ends) of an observer, each as one program per shape."""
  return jax.jit(OBSERVERS[name].update, static_argnums=2), jax.jit(OBSERVERS[name].ends, static_argnums=1)


def observed(name, batches, axis_name=None):
  """(state, range) after batches, from nothing."""
  state = OBSERVERS[name].init()
  update, ends = compiled(name)
  for x in batches:
    state = update(state, x, axis_name)
  return state, Seen(*ends(state, 8))


@every_observer
def test_observer_starts_with_the_first_batch(name):
  """The first batch is taken whole; no gradient passes; the count goes up by one."""
  x = values(scale=3.0)
  state, seen = observed(name, [x])
  assert int(state["batches"].count) == 1
  assert seen.low == jnp.min(x) and seen.high == jnp.max(x)
  assert jnp.all(jax.grad(lambda x: observed(name, [x])[1].high)(x) == 0)


@every_observer
def test_observer_stays_within_what_was_seen(name):
  batches = [values(seed, scale=1.0 + seed) for seed in range(5)]
  state, seen = observed(name, batches)
  everything = jnp.concatenate(batches)
  assert jnp.min(everything) <= seen.low < seen.high <= jnp.max(everything)
  assert int(state["batches"].count) == 5
  means = [jnp.mean(jnp.abs(x)) for x in batches]
  assert min(means) <= seen.magnitude <= max(means)


@pytest.mark.sampled(3)
@every_observer
def test_observer_has_a_state_of_constant_size(name):
  """Every field keeps its shape and type; nothing seen has no grid, which NaN tells."""
  empty, (state, _) = OBSERVERS[name].init(), observed(name, [values(), values(1, (3, 5, 7)), values(2, (900,))])
  assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, empty)
  assert jax.tree.map(lambda leaf: leaf.dtype, state) == jax.tree.map(lambda leaf: leaf.dtype, empty)
  assert int(empty["batches"].count) == 0
  assert np.isnan(quant.affine(*OBSERVERS[name].range(empty, 8), 8).scale)


@every_observer
@pytest.mark.parametrize("number", [0.0, 3.0, -1e-20, 3e38])
def test_observer_of_one_number_has_its_range(name, number):
  """Constant data, above zero too: a range of length zero, which `affine` widens to contain 0."""
  _, seen = observed(name, [jnp.full((4, 3), number, jnp.float32)] * 3)
  np.testing.assert_allclose([seen.low, seen.high], number, rtol=1e-6)
  assert np.isfinite(quant.affine(seen.low, seen.high, 8).scale)


@every_observer
def test_observer_does_not_depend_on_the_order(name):
  batches = [values(seed, scale=1.0 + seed) for seed in range(4)]
  found = [observed(name, order)[1] for order in (batches, batches[::-1])]
  np.testing.assert_array_equal(found[0][:2], found[1][:2])
  np.testing.assert_allclose(found[0].magnitude, found[1].magnitude, rtol=1e-6)


@every_observer
def test_observer_of_outliers(name):
  """One number far out is either in the range or left out, and the range is one of the rest then."""
  x = values(shape=(100, 101))
  _, seen = observed(name, [x.at[3, 7].set(1e6)])
  assert seen.high == 1e6 or 2 < seen.high <= 1.1 * jnp.max(x)
  assert seen.low >= jnp.min(x)


@pytest.mark.sampled(3)
@every_observer
def test_observer_over_devices(name):
  """Many devices with a share of each batch see what one device with the whole batch sees, and they all agree."""
  mesh = Mesh(np.asarray(jax.devices()[:4]), ("devices",))

  def local(*batches):
    return observed(name, batches, "devices")

  split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("devices"), out_specs=P()))
  batches = [values(seed) for seed in range(3)]
  one, many = observed(name, batches), split(*batches)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, many)


def on_format(name, bits, largest=1.7):
  return quant.symmetric(jnp.float32(largest), bits, format=name)


def bits_of(name):
  """4 bits, where the format has them."""
  return 4 if 4 in FORMATS[name].widths else FORMATS[name].widths[0]


@every_format
@pytest.mark.parametrize("bits", [*WIDTHS, 16])
def test_format_serves_the_widths_that_it_declares(name, bits):
  if bits in FORMATS[name].widths:
    assert on_format(name, bits).levels
    return
  with pytest.raises(UserError, match=f"expected a narrow signed grid of {FORMATS[name].widths[0]}"):
    on_format(name, bits)


def every_width(test):
  """Runs a check for each format at each of its widths but 16, whose levels are too many to compare with each."""
  names = [(name, bits) for name, format in FORMATS.items() for bits in format.widths if bits < 16]
  return pytest.mark.parametrize("name, bits", names)(test)


def there_and_back(x, grid):
  q = quant.codes(x, grid)
  return q, quant.dequantize(q, grid)


@pytest.mark.sampled(3)
@every_width
def test_format_has_levels(name, bits):
  """At most 2^b, zero among them and exact, ascending with their codes, and each the value of its own code."""
  grid = on_format(name, bits)
  levels = np.asarray(grid.levels)
  assert len(levels) <= 2**bits and 0 in levels and np.all(np.diff(levels) > 0)
  x = (np.float32(grid.scale) * levels.astype(np.float32)).astype(np.float32)
  q, restored = map(np.asarray, jax.jit(there_and_back)(x, grid))
  np.testing.assert_array_equal(q, np.arange(len(levels)) + q[0])
  assert grid.qmin <= q[0] and q[-1] <= grid.qmax and q[levels == 0] == 0
  np.testing.assert_array_equal(restored, x)
  np.testing.assert_allclose(x[-1], 1.7, rtol=1e-6)  # the largest magnitude is the highest level


@pytest.mark.sampled(3)
@every_width
def test_format_rounds_to_the_nearest_level(name, bits):
  """Against all levels in float64; monotone, idempotent, symmetric, and the same values from codes and inside jit."""
  grid = on_format(name, bits)
  x = np.concatenate([np.linspace(-2.5, 2.5, 2001), np.geomspace(1e-9, 2, 500), -np.geomspace(1e-9, 2, 500)])
  x = np.sort(x).astype(np.float32)
  values = np.float64(grid.scale) * np.asarray(grid.levels)
  y = np.asarray(quant.fake_quant(jnp.asarray(x), grid))
  distance = np.abs(x.astype(np.float64)[:, None] - values)
  np.testing.assert_allclose(np.abs(x.astype(np.float64) - y), distance.min(1), atol=1e-6)
  assert np.all(np.diff(y) >= 0)
  np.testing.assert_array_equal(quant.fake_quant(jnp.asarray(y), grid), y)
  np.testing.assert_array_equal(quant.fake_quant(jnp.asarray(-x), grid), -y)
  np.testing.assert_array_equal(quant.dequantize(quant.codes(x, grid), grid), y)
  np.testing.assert_array_equal(jax.jit(quant.fake_quant)(jnp.asarray(x), grid), y)


@every_format
def test_format_passes_gradients_inside_only(name):
  grid = on_format(name, bits_of(name))
  x, cotangent = jnp.asarray([-9.0, -1.69, -0.3, 0.0, 1e-4, 0.9, 1.69, 4.0]), jnp.arange(1.0, 9.0)
  for rounding in (quant.fake_quant, quant.ste()):
    found = jax.vjp(lambda x, rounding=rounding: rounding(x, grid), x)[1](cotangent)[0]
    np.testing.assert_array_equal(found, jnp.where(jnp.abs(x) < 1.7, cotangent, 0.0))


@every_format
def test_format_keeps_channels_apart(name):
  x = values()
  grid = quant.symmetric(jnp.max(jnp.abs(x), 0), bits_of(name), axis=1, format=name)
  for channel in range(8):
    alone = dataclasses.replace(grid, scale=grid.scale[channel], zero_point=jnp.int32(0), axis=None)
    np.testing.assert_array_equal(quant.fake_quant(x, grid)[:, channel], quant.fake_quant(x[:, channel], alone))


@every_estimator
@pytest.mark.parametrize("format", FORMATS)
def test_estimator_serves_a_format_or_refuses_it(name, format):
  grid, x = on_format(format, bits_of(format)), values()
  if ESTIMATORS[name].formats is None or format in ESTIMATORS[name].formats:
    levels = float(ESTIMATORS[name].scale(grid.scale)) * np.asarray(grid.levels)
    y = np.asarray(ESTIMATORS[name](x, grid), np.float64)
    assert np.max(np.min(np.abs(y[..., None] - levels), -1)) < 1e-6
  else:
    with pytest.raises(UserError, match=f"an estimator of integer grids was given one of '{format}'"):
      ESTIMATORS[name](x, grid)


def test_exceptions_name_what_exists():
  known = {*ROUNDINGS, *OBSERVERS, *FORMATS}
  assert [key for key in EXCEPTIONS if key[0] == "quant" and (key[1] not in known or key[2] not in CHECKS)] == []
