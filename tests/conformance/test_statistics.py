"""Every statistic of graph, found by walking the package, through one battery. Oracles are float64 numpy.

A tensor is (24, 5, 6), split along its first axis; rows are (2, 24, 6), split along their positions.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.methods import methods
from leanax.graph import statistics

CHANNELS = ((0, 1), (2,))  # (summed, kept)


def counts(x):
  found, edges = np.histogram(x, 16, (-2.0, 2.0))
  return graph.Histogram(found, edges, np.sum(x < -2), np.sum(x > 2), np.sum(np.isnan(x)))


# method: for each of several arguments (the statistic, its float64 oracle of a whole tensor)
CASES = {
  "extrema": [
    (graph.extrema(), lambda x: (x.min(), x.max())),
    (graph.extrema(-1), lambda x: (x.min((0, 1)), x.max((0, 1)))),
    (graph.extrema((1, 2)), lambda x: (x.min(0), x.max(0))),
  ],
  "absolute_maximum": [
    (graph.absolute_maximum(), lambda x: np.abs(x).max((0, 1))),
    (graph.absolute_maximum(None), lambda x: np.abs(x).max()),
  ],
  "mean": [
    (graph.mean(), np.mean),
    (graph.mean(-1), lambda x: x.mean((0, 1))),
    (graph.mean((-1, 1)), lambda x: x.mean(0)),
    (graph.mean(magnitude=True), lambda x: np.abs(x).mean()),
  ],
  "histogram": [(graph.histogram(-2.0, 2.0, 16), counts)],
  "second_moment": [(graph.second_moment(), lambda x: np.einsum("gni,gnj->gij", x, x) / x.shape[1])],
}
EVERY = [pytest.param(*case, id=f"{name}-{i}") for name, cases in CASES.items() for i, case in enumerate(cases)]
every = pytest.mark.parametrize(("statistic", "oracle"), EVERY)
EXACT = {"extrema", "absolute_maximum", "histogram"}


def data(statistic, seed=0):
  shape = (2, 24, 6) if statistic.rows else (24, 5, 6)
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parts(statistic, x, ends):
  return np.split(x, ends, axis=int(statistic.rows))


def start(statistic, x):
  return statistic.init(jax.ShapeDtypeStruct(x.shape, jnp.float32))


@functools.cache
def update(statistic):
  """One program for each shape of a batch."""
  return jax.jit(lambda state, x: statistic.update(state, x, None))


def gathered(statistic, batches):
  state = start(statistic, batches[0])
  for batch in batches:
    state = update(statistic)(state, batch)
  return state


def same(statistic, found, expected):
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert np.shape(one) == np.shape(other)
    if statistic.name in EXACT:
      np.testing.assert_array_equal(one, other)
    else:
      np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_the_walk_finds_them():
  assert set(methods(graph, "statistics")) == set(CASES), "every statistic belongs into CASES"
  files = {path.stem for path in pathlib.Path(statistics.__file__).parent.glob("*.py")} - {"__init__"}
  assert files == set(CASES), "a file of leanax/graph/statistics makes no statistic, or graph does not export it"
  for name, cases in CASES.items():
    assert all(isinstance(case[0], graph.Statistic) and case[0].name.startswith(name) for case in cases)


@every
def test_the_whole_is_the_oracle(statistic, oracle):
  x = data(statistic)
  same(statistic, statistic.value(gathered(statistic, [x])), oracle(x.astype(np.float64)))


@pytest.mark.sampled(3)
@every
@pytest.mark.parametrize("ends", [[10], [1, 2, 12, 23], [0, 10, 10, 24]], ids=["two", "uneven", "empty"])
def test_split_is_whole_in_any_order(statistic, oracle, ends):
  x = data(statistic)
  batches = parts(statistic, x, ends)
  expected = oracle(x.astype(np.float64))
  same(statistic, statistic.value(gathered(statistic, batches)), expected)
  if not statistic.ordered:
    same(statistic, statistic.value(gathered(statistic, batches[::-1])), expected)


@every
def test_merged_states_are_one(statistic, oracle):
  x = data(statistic)
  one, two, three = parts(statistic, x, [10, 11])
  states = [gathered(statistic, [batch]) for batch in (one, two, three)]
  expected = oracle(x.astype(np.float64))
  same(statistic, statistic.value(statistic.merge(statistic.merge(states[0], states[1]), states[2])), expected)
  same(statistic, statistic.value(statistic.merge(states[2], statistic.merge(states[1], states[0]))), expected)
  alone = statistic.value(statistic.merge(start(statistic, x), states[0]))
  jax.tree.map(np.testing.assert_array_equal, alone, statistic.value(states[0]))


@every
def test_one_device_is_four(statistic, oracle):
  x = data(statistic)
  mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
  spec = P(None, "d") if statistic.rows else P("d")
  expected = oracle(x.astype(np.float64))
  state = start(statistic, x)
  mapped = jax.shard_map(
    lambda state, x: statistic.update(state, x, "d"), mesh=mesh, in_specs=(P(), spec), out_specs=P()
  )
  same(statistic, statistic.value(jax.jit(mapped)(state, x)), expected)
  sharded = jax.device_put(x, NamedSharding(mesh, spec))
  same(statistic, statistic.value(update(statistic)(state, sharded)), expected)


@every
def test_the_state_does_not_grow(statistic, oracle):
  del oracle
  small, large = data(statistic), np.concatenate([data(statistic)] * 3, axis=int(statistic.rows))
  shapes = [
    jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    for state in (start(statistic, small), gathered(statistic, [small] * 3), gathered(statistic, [large]))
  ]
  if not statistic.rows and small.shape[0] in jax.tree.leaves(shapes[0]):
    pytest.fail("the state holds the batch's axis")
  assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.sampled(3)
@every
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_not_finite_is_seen(statistic, oracle, number):
  """On one device of four, in one batch of three, the first or the last."""
  del oracle
  x, bad = data(statistic), data(statistic, 1)
  bad[1, 3, 2] = number
  mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
  spec = P(None, "d") if statistic.rows else P("d")
  update = jax.jit(
    jax.shard_map(lambda s, x: statistic.update(s, x, "d"), mesh=mesh, in_specs=(P(), spec), out_specs=P())
  )
  for batches in ([bad, x, x], [x, x, bad]):
    state = start(statistic, x)
    for batch in batches:
      state = update(state, batch)
    value = statistic.value(state)
    if isinstance(value, graph.Histogram):
      expected = counts(np.concatenate(batches).astype(np.float64)[~np.isnan(np.concatenate(batches))])
      expected = expected._replace(nan=np.uint64(np.isnan(number)))
      jax.tree.map(np.testing.assert_array_equal, value, expected)
      continue
    leaves = jax.tree.leaves(value)
    wrong = [leaf for leaf in leaves if not np.all(np.isfinite(leaf))]
    assert wrong and (np.isinf(number) or all(np.any(np.isnan(leaf)) for leaf in wrong))
    if statistic.name == "extrema" and np.isinf(number):
      assert np.any(value.low == -np.inf) == (number < 0) and np.any(value.high == np.inf) == (number > 0)


@every
def test_thousands_of_batches_lose_no_digits(statistic, oracle):
  """Plain sums of as many batches are off by 1e-5 and more."""
  if statistic.ordered:
    pytest.skip("a moving average forgets")
  x = np.abs(data(statistic)) + np.float32(0.1)
  state, _ = jax.jit(
    lambda state, x: jax.lax.scan(lambda s, _: (statistic.update(s, x, None), None), state, length=20_000)
  )(start(statistic, x), x)
  expected = oracle(x.astype(np.float64))
  if isinstance(expected, graph.Histogram):
    expected = expected._replace(**{k: 20_000 * getattr(expected, k) for k in ("counts", "below", "above", "nan")})
  same(statistic, statistic.value(state), expected)


@pytest.mark.sampled(3)
@every
def test_layers_of_a_scan_have_states_of_their_own(statistic, oracle):
  x = np.stack([data(statistic, seed) for seed in (0, 1, 2)])
  state = jax.vmap(lambda _: start(statistic, x[0]))(jnp.arange(3))
  state = jax.vmap(lambda s, x: statistic.update(s, x, None))(state, x)
  value = statistic.value(state)
  for layer in range(3):
    expected = oracle(x[layer].astype(np.float64))
    found = (
      [leaf if isinstance(value, graph.Histogram) and i == 1 else leaf[layer] for i, leaf in enumerate(value)]
      if (isinstance(value, tuple))
      else value[layer]
    )
    same(statistic, found, expected)


def test_counts_pass_the_end_of_32_bits():
  from leanax.graph import totals

  count = totals.no_count(())
  for _ in range(3):
    count = totals.add_counts(count, totals.counted(2**32 - 1))
  assert int(totals.whole(count)) == 3 * (2**32 - 1)
  assert int(totals.whole(totals.add_counts(count, count))) == 6 * (2**32 - 1)


def test_values_before_any_data():
  x = jax.ShapeDtypeStruct((4, 3), jnp.float32)
  assert np.isnan(graph.mean().value(graph.mean().init(x)))
  ends = graph.extrema().value(graph.extrema().init(x))
  assert (ends.low, ends.high) == (np.inf, -np.inf)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: graph.histogram(1.0, 1.0), "expected low below high"),
    (lambda: graph.histogram(np.nan, 1.0), "histogram: low is nan; expected a finite number"),
    (lambda: graph.histogram(-3e38, 3e38), "low is -3e\\+38; expected a finite number, and its magnitude at most 1e18"),
    (lambda: graph.histogram(0.0, 1.0, 0), "histogram: bins is 0; expected a whole number, 1 or more"),
    (lambda: graph.mean(3).init(jax.ShapeDtypeStruct((2, 3), jnp.float32)), r"axis is 3; expected .* shape \(2, 3\)"),
    (lambda: graph.extrema((1, -1)).init(jax.ShapeDtypeStruct((2, 3), jnp.float32)), r"axis is \(1, -1\)"),
    (lambda: graph.mean("c").init(jax.ShapeDtypeStruct((2, 3), jnp.float32)), "axis is 'c'"),
  ],
)
def test_a_wrong_argument_is_one_sentence(make, message):
  with pytest.raises(UserError, match=message):
    make()
