"""Functions evaluated again with operations replaced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import map_named
from tests.graph import models


def text(fn, *args):
  def called(*args):
    return fn(*args)

  return jax.jit(called).lower(*args).as_text()


def nothing(op, inputs, extras):
  return None


def rounded(w):
  return jnp.round(w * 8.0) / 8.0


def round_kernels(op, inputs, extras):
  """Kernels in steps of an eighth, and a count of the uses of each."""
  if op.kernel_index is None:
    return None
  inputs = list(inputs)
  inputs[op.kernel_index] = rounded(inputs[op.kernel_index])
  return op.bind(*inputs), {op.name: extras.get(op.name, 0) + 1}


@pytest.mark.parametrize("mode", ["fn", "train"])
@pytest.mark.parametrize("name", models.CASES)
def test_nothing_visited_lowers_to_the_same_text(name, mode):
  case = models.CASES[name]()
  fn = getattr(case, mode)
  again = graph.rewrite(fn, nothing)
  unopened = graph.rewrite(fn, nothing, select=lambda op: False)
  expected = text(fn, case.variables, case.x)
  assert text(lambda v, x: again({}, v, x)[0], case.variables, case.x) == expected
  assert text(lambda v, x: unopened({}, v, x)[0], case.variables, case.x) == expected


def in_calls():
  """A dot in a user's own jitted function, called twice, inside of another."""
  dense = jax.jit(lambda w, x: jnp.tanh(x @ w))
  twice = jax.jit(lambda v, x: dense(v["b"], dense(v["a"], x)))
  return lambda v, x: twice(v, x) @ v["c"]


def test_a_call_in_which_nothing_is_replaced_stays_a_call():
  fn = in_calls()
  variables, x = {name: models.normal(i, 4, 4) for i, name in enumerate("abc")}, models.normal(3, 5, 4)
  expected = text(fn, variables, x)
  assert "func.call" in expected or "call @" in expected
  last = lambda op, inputs, extras: (op.bind(*inputs), {}) if op.name == "c" else None
  for visit in (nothing, last):
    again = graph.rewrite(fn, visit)
    assert text(lambda v, x, again=again: again({}, v, x)[0], variables, x) == expected
  inner = graph.rewrite(fn, lambda op, i, e: (op.bind(i[0], 2.0 * i[1]), {}) if op.name == "b" else None)
  np.testing.assert_allclose(
    jax.jit(inner)({}, variables, x)[0], fn({**variables, "b": 2 * variables["b"]}, x), rtol=1e-5
  )


@pytest.mark.parametrize("name", models.CASES)
def test_rounded_kernels_are_the_function_of_rounded_variables(name):
  case = models.CASES[name]()
  again = graph.rewrite(case.fn, round_kernels)

  found = graph.trace(case.fn, case.variables, case.x)
  kernels = {op.inputs[op.kernel_index].leaf for op in found.sites.values() if op.kernel_index is not None}

  def explicit(variables):
    rounded_variables = map_named(
      lambda name, w: rounded(w) if name.removeprefix("params/") in kernels else w, variables
    )
    return case.fn(rounded_variables, case.x)

  def changed(variables):
    return again({}, variables, case.x)

  out, extras = jax.jit(changed)(case.variables)
  np.testing.assert_array_equal(out, jax.jit(explicit)(case.variables))
  assert {int(v) for v in extras.values()} == {1} and len(extras) >= 2
  one, other = (jax.jit(jax.grad(lambda v, f=f: jnp.sum(f(v) ** 2))) for f in (lambda v: changed(v)[0], explicit))
  jax.tree.map(np.testing.assert_array_equal, one(case.variables), other(case.variables))


def test_extras_are_threaded():
  case = models.mlp()
  again = graph.rewrite(case.fn, round_kernels)
  _, extras = again({"Dense_0/kernel": 4, "own": "kept"}, case.variables, case.x)
  assert extras == {"Dense_0/kernel": 5, "Dense_1/kernel": 1, "own": "kept"}


def test_an_operation_sees_what_earlier_ones_wrote():
  case = models.mlp()

  def visit(op, inputs, extras):
    return (op.bind(*inputs), {"order": (*extras.get("order", ()), op.name)}) if op.kind != "output" else (inputs, {})

  _, extras = graph.rewrite(case.fn, visit)({}, case.variables, case.x)
  assert extras["order"] == ("Dense_0/kernel", "Dense_0/bias", "Dense_1/kernel", "Dense_1/bias")


def test_the_output_can_be_replaced():
  case = models.conv_net()

  def visit(op, inputs, extras):
    return ((inputs[0] * 0.0, *inputs[1:]), {}) if op.kind == "output" else None

  (logits, state), _ = jax.jit(graph.rewrite(case.train, visit))({}, case.variables, case.x)
  assert not logits.any()
  expected = jax.jit(case.train)(case.variables, case.x)[1]
  jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_relu_is_flat_at_zero():
  def fn(variables, x):
    return jax.nn.relu(x * variables["w"])

  again = graph.rewrite(fn, nothing)
  assert jax.grad(lambda x: again({}, {"w": jnp.float32(1)}, x)[0])(jnp.float32(0)) == 0


@pytest.mark.parametrize("keepdims", [False, True])
def test_a_mean_is_one_operation_with_and_without_its_axes(keepdims):
  def fn(v, x):
    return (x * v["w"]).mean((1, 2), keepdims=keepdims)

  def doubled(op, inputs, extras):
    return (op.bind(inputs[0] * 2.0), {}) if op.kind == "mean" else None

  v, x = {"w": jnp.asarray(3.0)}, jnp.arange(2.0 * 4 * 3 * 5).reshape(2, 4, 3, 5)
  assert [op.kind for op in graph.trace(fn, v, x).sites.values()] == ["mean", "output"]
  out, _ = graph.rewrite(fn, doubled)({}, v, x)
  np.testing.assert_allclose(out, 6.0 * np.asarray(x, np.float64).mean((1, 2), keepdims=keepdims), rtol=1e-6)


def test_means_and_pools_are_replaced_as_one():
  case = models.conv_net()

  def visit(op, inputs, extras):
    if op.kind not in ("mean", "avg_pool"):
      return None
    return op.bind(inputs[0] * 2.0), {}

  found = graph.trace(case.fn, case.variables, case.x)
  assert [op.kind for op in found.sites.values()].count("mean") == 1
  head = case.variables["params"]["Dense_0"]["bias"]
  doubled = graph.rewrite(case.fn, visit)({}, case.variables, case.x)[0] - head
  np.testing.assert_allclose(doubled, 4.0 * (case.fn(case.variables, case.x) - head), rtol=1e-5, atol=1e-6)


def test_another_batch_size_and_vmap():
  case = models.conv_net()
  again = graph.rewrite(case.fn, nothing)
  x = models.images(5)
  for mode in (jax.jit, lambda fn: jax.jit(jax.vmap(lambda x: fn(x[None])))):
    found = mode(lambda x: again({}, case.variables, x)[0])(x)
    np.testing.assert_array_equal(found, mode(lambda x: case.fn(case.variables, x))(x))


def test_a_wrong_replacement_is_refused_by_name():
  case = models.mlp()
  again = graph.rewrite(case.fn, lambda op, inputs, extras: ((jnp.ones(3),), {}))
  with pytest.raises(UserError, match=r"'Dense_0/kernel' returned float32\[3\], expected float32\[2,8\]"):
    again({}, case.variables, case.x)


@pytest.mark.parametrize(
  "answer", [lambda op, x: op.bind(*x), lambda op, x: (op.bind(*x)[0], {}), lambda op, x: 3, lambda op, x: (1, 2, 3)]
)
def test_a_visitor_that_gives_no_outputs_and_extras_is_named(answer):
  changed = graph.rewrite(
    lambda v, x: x @ v["w"], lambda op, inputs, extras: answer(op, inputs) if op.kind == "dot" else None
  )
  with pytest.raises(UserError, match=r"no \(outputs, extras\) for 'w'; expected such as"):
    changed({}, {"w": jnp.ones((3, 2))}, jnp.ones((2, 3)))
