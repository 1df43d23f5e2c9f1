from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.methods import methods
from quant import observers
from quant.observers.base import batches

BATCHES = [np.random.default_rng(i).normal(size=(8, 5)).astype(np.float32) * (i + 1) for i in range(4)]


class Seen(NamedTuple):
  low: jax.Array
  high: jax.Array
  magnitude: jax.Array
  count: jax.Array


def run(observer, batches):
  update = jax.jit(lambda state, batch: observer.update(state, batch, None))
  state = jax.device_get(observer.init())
  for batch in batches:
    state = update(state, batch)
  return Seen(*ends(observer, state), state["batches"].count)


def ends(observer, state):
  return jax.jit(lambda state: observer.ends(state, 8))(state)


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


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", sorted(methods(observers)))
def test_one_device_equals_four_and_no_gradient_passes(name):
  observer = methods(observers)[name]()
  mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))

  def two_steps(a, b, axis_name):
    state = observer.update(observer.update(observer.init(), a, axis_name), b, axis_name)
    return Seen(*observer.ends(state, 8), state["batches"].count)

  a, b = (jnp.asarray(v) for v in BATCHES[:2])
  one, gradient = jax.jit(lambda a: (two_steps(a, b, None), jax.grad(lambda a: two_steps(a, b, None).high)(a)))(a)
  four = jax.jit(
    jax.shard_map(lambda a, b: two_steps(a, b, "d"), mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec())
  )(a, b)
  mapped = jax.pmap(lambda a, b: two_steps(a, b, "d"), axis_name="d", out_axes=None)(
    *(v.reshape(4, 2, 5) for v in BATCHES[:2])
  )
  for other in (four, mapped):
    np.testing.assert_array_equal(one.low, other.low)
    np.testing.assert_array_equal(one.high, other.high)
    np.testing.assert_allclose(one.magnitude, other.magnitude, rtol=1e-6)
  assert not np.any(gradient)


def test_a_rate_out_of_range_is_refused():
  with pytest.raises(UserError, match="ema: rate is 0"):
    observers.ema(0)


@pytest.mark.parametrize("name", sorted(methods(observers)))
def test_nan_on_one_device_of_four_is_remembered_on_all(name):
  observer = methods(observers)[name]()
  mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
  a, b = (jnp.asarray(v) for v in BATCHES[:2])
  good = jax.jit(lambda a: observer.update(observer.init(), a, None))(a)

  def two_steps(state, x, y):
    return observer.update(observer.update(state, x, "d"), y, "d")

  spoilt = np.array(b)
  spoilt[5, 2] = np.nan
  whole, split = PartitionSpec(), PartitionSpec("d")
  mapped = jax.jit(jax.shard_map(two_steps, mesh=mesh, in_specs=(whole, split, split), out_specs=whole))
  found = mapped(good, spoilt, a)
  assert int(found["batches"].count) == -2  # the second batch
  assert all(np.isnan(value) for value in ends(observer, found))
  assert int(mapped(good, b, a)["batches"].count) == 3


@pytest.mark.parametrize("name", sorted(methods(observers)))
def test_graph_observe_gathers_the_statistics_of_observers(name):
  observer, every = methods(observers)[name](), [jnp.asarray(batch) for batch in BATCHES]
  found = graph.observe(
    lambda v, x: x @ v["w"], {"w": jnp.asarray(np.ones((5, 2), np.float32))}, every, {"input": observer.statistics}
  )
  np.testing.assert_array_equal(ends(observer, found["input"]), run(observer, every)[:3])


def test_batches_merge():
  """Two halves are the whole, NaN by the number of its batch; a moving average depends on the order."""
  assert batches(0.25).ordered
  one, spoilt = batches(), [*BATCHES[:2], np.full((8, 5), np.inf, np.float32), BATCHES[3]]
  update, merge = jax.jit(one.update), jax.jit(one.merge)

  def of(some):
    state = jax.device_get(one.init(jax.ShapeDtypeStruct((8, 5), jnp.float32)))
    for batch in some:
      state = update(state, batch, None)
    return state

  for every in (BATCHES, spoilt):
    for cut in range(5):
      merged, whole = merge(of(every[:cut]), of(every[cut:])), of(every)
      assert int(merged.count) == int(whole.count)
      np.testing.assert_allclose(merged.magnitude, whole.magnitude, rtol=1e-6)
