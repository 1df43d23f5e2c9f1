import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from leanax.core.errors import UserError
from leanax.core.methods import methods
from quant import observers

BATCHES = [np.random.default_rng(i).normal(size=(8, 5)).astype(np.float32) * (i + 1) for i in range(4)]


def run(observer, batches):
  state = observer.empty()
  for batch in batches:
    state = observer.update(state, jnp.asarray(batch), None)
  return observer.range(state)


def test_min_max_is_the_range_of_everything_seen():
  found = run(observers.min_max(), BATCHES)
  np.testing.assert_array_equal(found.low, np.min(BATCHES))
  np.testing.assert_array_equal(found.high, np.max(BATCHES))
  np.testing.assert_allclose(found.magnitude, np.mean(np.abs(BATCHES)), rtol=1e-6)
  assert int(found.count) == 4


def test_ema_starts_from_the_first_batch():
  found = run(observers.ema(0.25), BATCHES)
  low, high, magnitude = BATCHES[0].min(), BATCHES[0].max(), np.abs(BATCHES[0]).mean()
  for batch in BATCHES[1:]:
    low += 0.25 * (batch.min() - low)
    high += 0.25 * (batch.max() - high)
    magnitude += 0.25 * (np.abs(batch).mean() - magnitude)
  np.testing.assert_allclose([found.low, found.high, found.magnitude], [low, high, magnitude], rtol=1e-5)


def test_ema_with_rate_one_is_the_last_batch():
  found = run(observers.ema(1.0), BATCHES)
  np.testing.assert_allclose([found.low, found.high], [BATCHES[-1].min(), BATCHES[-1].max()], rtol=1e-6)


def test_ranges_above_zero_are_not_pulled_to_zero():
  found = run(observers.min_max(), [np.full((2, 2), 3.0, np.float32)])
  assert (float(found.low), float(found.high)) == (3.0, 3.0)


@pytest.mark.parametrize("name", sorted(methods(observers)))
def test_one_device_equals_four_and_no_gradient_passes(name):
  observer = methods(observers)[name]()
  mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))

  def two_steps(a, b, axis_name):
    return observer.range(observer.update(observer.update(observer.empty(), a, axis_name), b, axis_name))

  a, b = (jnp.asarray(v) for v in BATCHES[:2])
  one = two_steps(a, b, None)
  four = jax.jit(
    jax.shard_map(lambda a, b: two_steps(a, b, "d"), mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec())
  )(a, b)
  mapped = jax.pmap(lambda a, b: two_steps(a, b, "d"), axis_name="d", out_axes=None)(
    a.reshape(4, 2, 5), b.reshape(4, 2, 5)
  )
  for other in (four, mapped):
    np.testing.assert_array_equal(one.low, other.low)
    np.testing.assert_array_equal(one.high, other.high)
    np.testing.assert_allclose(one.magnitude, other.magnitude, rtol=1e-6)
  assert not np.any(jax.grad(lambda a: two_steps(a, b, None).high)(a))


def test_a_rate_out_of_range_is_refused():
  with pytest.raises(UserError, match="ema: rate is 0"):
    observers.ema(0)


@pytest.mark.parametrize("name", sorted(methods(observers)))
def test_nan_on_one_device_of_four_is_remembered_on_all(name):
  observer = methods(observers)[name]()
  mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
  a, b = (jnp.asarray(v) for v in BATCHES[:2])
  good = observer.update(observer.empty(), a, None)

  def two_steps(state, x, y):
    return observer.update(observer.update(state, x, "d"), y, "d")

  whole, split = PartitionSpec(), PartitionSpec("d")
  mapped = jax.jit(jax.shard_map(two_steps, mesh=mesh, in_specs=(whole, split, split), out_specs=whole))
  found = mapped(good, b.at[5, 2].set(jnp.nan), a)
  assert int(found.count) == -2  # the second batch
  assert all(np.isnan(value) for value in observer.range(found)[:3])
  assert int(mapped(good, b, a).count) == 3
