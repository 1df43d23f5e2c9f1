"""Statistics of a model's tensors: what the taps hold, gathered without holding it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from leanax import graph
from leanax.core.errors import UserError
from tests.graph import models


def batches(count=3, batch=4):
  return [np.asarray(models.normal(seed, batch, 8, 8, 3)) for seed in range(count)]


def tapped(case, names, x):
  return {
    name: np.asarray(value, np.float64) for name, value in graph.taps(case.fn, names)(case.variables, x)[1].items()
  }


@pytest.mark.sampled(3)
@pytest.mark.parametrize("framework", models.CASES)
def test_every_tensor_of_every_framework(framework):
  case = models.CASES[framework]()
  traced = graph.trace(case.fn, case.variables, case.x)
  names = sorted({operand.tensor for op in traced.sites.values() for operand in op.inputs if operand.tensor})
  names = [name for name in names if not name.endswith(":acc")]
  given = batches()
  found = graph.observe(case.fn, case.variables, given, {name: [graph.extrema(), graph.mean(-1)] for name in names})
  whole = tapped(case, names, np.concatenate(given))
  for name in names:
    x = whole[name]
    np.testing.assert_allclose(found[name]["extrema"], (x.min(), x.max()), rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(
      found[name]["mean"], x.mean(tuple(range(x.ndim - 1))), rtol=1e-5, atol=1e-6, err_msg=name
    )


@pytest.mark.parametrize("framework", models.CASES)
def test_every_product_of_every_framework(framework):
  case = models.CASES[framework]()
  traced = graph.trace(case.fn, case.variables, case.x)
  ops = {name: op for name, op in traced.sites.items() if op.kernel_index is not None}
  given = batches()
  found = graph.observe(case.fn, case.variables, given, {name: [graph.second_moment()] for name in ops})
  reads = [op.inputs[1 - op.kernel_index].tensor for op in ops.values()]
  whole = tapped(case, reads, np.concatenate(given))
  for (name, op), tensor in zip(ops.items(), reads):
    if op.inputs[1 - op.kernel_index].shape[1:] != whole[tensor].shape[1:]:
      continue  # pooled or transposed on the way
    x = np.asarray(graph.rows(op, jnp.asarray(whole[tensor])), np.float64)
    expected = np.einsum("gni,gnj->gij", x, x) / x.shape[1]
    np.testing.assert_allclose(found[name]["second_moment"], expected, rtol=1e-5, atol=1e-5, err_msg=name)


def scanned(variables, x):
  @jax.checkpoint
  def layer(x, w):
    return jax.nn.relu(x @ w) + x, None

  return jax.lax.scan(layer, x, variables["blocks"])[0]


SCAN = {"blocks": models.normal(3, 3, 5, 5)}


def test_layers_of_a_scan_have_values_of_their_own():
  given = [np.asarray(models.normal(seed, 4, 5)) for seed in range(2)]
  statistics = [graph.second_moment(), graph.mean((0, 2)), graph.extrema()]
  found = graph.observe(scanned, SCAN, given, {"blocks": statistics})["blocks"]
  x = np.concatenate(given).astype(np.float64)
  for layer in range(3):
    np.testing.assert_allclose(found["second_moment"][layer, 0], x.T @ x / len(x), rtol=1e-5)
    np.testing.assert_allclose(found["mean"][layer, 0], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["extrema"].low[layer], x.min(), rtol=1e-5)
    x = np.maximum(x @ np.asarray(SCAN["blocks"][layer], np.float64), 0) + x


def test_a_branch_that_did_not_run_has_seen_nothing():
  def fn(variables, x):
    y = jax.lax.cond(x.sum() > 0, lambda x: jnp.tanh(x @ variables["a"]), lambda x: x @ variables["b"], x)
    return y @ variables["c"]

  variables = {key: models.normal(seed, 3, 3) for seed, key in enumerate("abc")}
  what = {"a": [graph.mean(), graph.extrema()], "b": [graph.mean(), graph.extrema()], "c": [graph.mean()]}
  ones = np.ones((2, 3), np.float32)
  found = graph.observe(fn, variables, [ones, 2 * ones], what)
  assert found["a"]["mean"] == 1.5 and np.isfinite(found["c"]["mean"])
  assert np.isnan(found["b"]["mean"]) and found["b"]["extrema"].low == np.inf
  found = graph.observe(fn, variables, [-ones, ones, -3 * ones], what)
  assert (found["a"]["mean"], found["b"]["mean"]) == (1.0, -2.0)
  assert (found["b"]["extrema"].low, found["b"]["extrema"].high) == (-3.0, -1.0)


def test_ranges_first_and_histograms_in_a_second_pass():
  case, given = models.mlp(), batches()
  ends = graph.observe(case.fn, case.variables, given, {"input": [graph.extrema()]})["input"]["extrema"]
  found = graph.observe(case.fn, case.variables, given, {"input": [graph.histogram(*map(float, ends), bins=64)]})
  counts = found["input"]["histogram"]
  assert counts.counts.sum() == sum(x.size for x in given) and counts.below == counts.above == counts.nan == 0
  expected, _ = np.histogram(np.concatenate(given), 64, tuple(map(float, ends)))
  assert np.abs(counts.counts.astype(int) - expected).sum() <= 4  # float32 rounds what lies on an edge


def test_a_batch_split_over_devices_is_the_batch():
  case, (x,) = models.conv_net(), batches(1)
  name = "Conv_1/kernel"
  what = {name: [graph.second_moment()], "input": [graph.extrema(), graph.mean(-1)]}
  one = graph.observe(case.fn, case.variables, [x], what)
  mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
  four = graph.observe(case.fn, case.variables, [jax.device_put(x, NamedSharding(mesh, P("d")))], what)
  observer = graph.observing(case.fn, what, "d")
  update = jax.jit(jax.shard_map(observer.update, mesh=mesh, in_specs=(P(), P(), P("d")), out_specs=P()))
  mapped = observer.value(update(observer.init(case.variables, x), case.variables, x))
  for other in (four, mapped):
    np.testing.assert_array_equal(other["input"]["extrema"], one["input"]["extrema"])
    np.testing.assert_allclose(other["input"]["mean"], one["input"]["mean"], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(other[name]["second_moment"], one[name]["second_moment"], rtol=1e-5, atol=1e-6)


def test_states_of_two_programs_merge():
  case, (a, b) = models.mlp(), batches(2)
  what = {"Dense_1/kernel": [graph.second_moment(), graph.absolute_maximum((0, 2))]}
  observer = graph.observing(case.fn, what)
  first = observer.init(case.variables, a)
  states = [observer.update(first, case.variables, x) for x in (a, b)]
  found = observer.value(observer.merge(*states))["Dense_1/kernel"]
  whole = graph.observe(case.fn, case.variables, [np.concatenate([a, b])], what)["Dense_1/kernel"]
  np.testing.assert_allclose(found["second_moment"], whole["second_moment"], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found["absolute_maximum"], whole["absolute_maximum"], rtol=1e-6)


def test_several_inputs_half_precision_and_whole_numbers():
  def fn(variables, x, ids):
    return (x @ variables["w"].astype(x.dtype)) * variables["table"][ids].astype(x.dtype)

  variables = {"w": models.normal(0, 3, 2), "table": models.normal(1, 7, 2)}
  given = [(jnp.full((2, 3), 0.5, jnp.bfloat16), jnp.asarray([seed, 6])) for seed in range(3)]
  found = graph.observe(fn, variables, given, {"w": [graph.mean()], "input": [graph.extrema()]})
  assert found["w"]["mean"] == 0.5 and found["input"]["extrema"].high.dtype == np.float32


def test_nothing_is_compiled_twice_for_one_shape():
  case, traced = models.mlp(), []

  def fn(variables, x):
    traced.append(x.shape)
    return case.fn(variables, x)

  graph.observe(fn, case.variables, batches(6), {"input": [graph.mean()]})
  assert len(traced) <= 2  # shapes of the states, and the step


def looping(variables, x):
  return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ variables["w"], x) @ variables["v"]


LOOP = {"w": models.normal(0, 3, 3), "v": models.normal(1, 3, 3)}


@pytest.mark.parametrize(
  ("what", "message"),
  [
    ({"Dense_0/kernl": [graph.mean()]}, "unknown activation or product 'Dense_0/kernl'; did you mean 'Dense_0/kernel'"),
    ({"Dense_0/bias": [graph.mean()]}, "'Dense_0/bias' cannot be observed: it is of the kind 'bias'"),
    ({"input": [graph.second_moment()]}, "'second_moment' reads the rows of a site, and 'input' is a tensor"),
    ({"input": graph.mean()}, r"the statistics of 'input' are .* expected a list"),
    ({"input": []}, "expected a list"),
    ({"input": [graph.mean(), graph.mean(-1)]}, "'input' has two statistics named 'mean'"),
    ({}, "expected a dict of statistics"),
    ({"input": [graph.mean(9)]}, "mean: axis is 9"),
  ],
)
def test_a_mistake_is_one_sentence(what, message):
  case = models.mlp()
  with pytest.raises(UserError, match=message):
    graph.observe(case.fn, case.variables, [case.x], what)


@pytest.mark.parametrize("given", [[], iter([]), np.ones((2, 8, 8, 3)), {"x": 1}, "abc", 3])
def test_invalid_batches_are_refused(given):
  case = models.mlp()
  with pytest.raises(UserError, match="batches"):
    graph.observe(case.fn, case.variables, given, {"input": [graph.mean()]})


@pytest.mark.parametrize("length", [1, 7])
def test_an_axis_of_another_size_is_refused(length):
  """A length of 1 would broadcast to a plausible wrong number."""
  given = [np.ones((2, 5, 3), np.float32), np.ones((2, length, 3), np.float32)]
  what = {"input": [graph.mean(1)]}
  with pytest.raises(UserError, match=r"'mean' of 'input' cannot take a batch whose shape there is \(2, \d, 3\)"):
    graph.observe(lambda v, x: x @ v["w"], LOOP, given, what)
  assert graph.observe(lambda v, x: x @ v["w"], LOOP, given, {"input": [graph.mean(-1)]})["input"]["mean"].shape == (3,)


def test_unreadable_tensors_are_refused():
  x = np.ones((2, 3), np.float32)
  with pytest.raises(UserError, match="'w' cannot be observed: it is inside a while loop"):
    graph.observe(looping, LOOP, [x], {"w": [graph.mean()]})
  assert graph.observe(looping, LOOP, [x], {"v": [graph.mean()]})["v"]["mean"].shape == ()
  with pytest.raises(UserError, match="'input' holds complex64"):
    graph.observe(
      lambda v, x: (x @ v["w"].astype(x.dtype)).real, LOOP, [x.astype(np.complex64)], {"input": [graph.mean()]}
    )
