"""Channels in another order: the function's values stay, and the numbers are where the edit says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.errors import UserError
from tests.graph import models
from tests.graph.test_cut import dense_dense, net, variables

ORDER = [3, 0, 5, 1, 4, 2]


@pytest.mark.parametrize("dropout", [pytest.param(False, marks=pytest.mark.slow), True])
def test_values_and_gradients_are_those_before(dropout):
  """Through a scan, a checkpoint, custom rules, batch statistics and a dropout mask drawn at a shape."""
  v, x = variables(), models.images(2)
  more = (jax.random.key(5),) if dropout else ()
  whole = graph.net(net, v, x, *more)
  moved = graph.permute(whole, "stem/kernel", -1, ORDER)
  np.testing.assert_array_equal(moved.variables["params"]["stem"]["kernel"], v["params"]["stem"]["kernel"][..., ORDER])
  stored = graph.edit(net, *json.loads(json.dumps([moved.edits, graph.shapes(v)])))

  def gradients(fn):
    def loss(v, x):
      out = fn(v, x, *more)
      return jnp.sum(jnp.sin(out) ** 2), out

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))

  x = models.images(3)
  (by_v, by_x), out = gradients(stored)(moved.variables, x)
  (expected_by_v, expected_by_x), expected = gradients(net)(v, x)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(by_x, expected_by_x, rtol=1e-4, atol=1e-5)
  moved_gradient = graph.permute(graph.net(net, expected_by_v, x, *more), "stem/kernel", -1, ORDER).variables
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), by_v, moved_gradient)


def test_sums_over_the_channels_may_be_taken_in_another_order():
  fn, v = dense_dense(lambda x: jax.nn.softmax(x - x.mean(1, keepdims=True)))
  v = {"a": models.normal(0, 3, 4), "b": models.normal(1, 4, 2)}
  x = models.normal(2, 5, 3)
  moved = graph.permute(graph.net(fn, v, x), "b", 0, np.array([2, 3, 1, 0]))
  np.testing.assert_array_equal(moved.variables["a"], v["a"][:, [2, 3, 1, 0]])
  np.testing.assert_allclose(moved.infer(moved.variables, x), fn(v, x), rtol=1e-6)


def test_orders_follow_each_other():
  fn, v = dense_dense(jax.nn.relu)
  v = {"a": models.normal(0, 3, 4), "b": models.normal(1, 4, 2)}
  x = models.normal(2, 5, 3)
  moved = graph.permute(graph.permute(graph.net(fn, v, x), "a", 1, [1, 2, 3, 0]), "a", 1, [3, 2, 1, 0])
  np.testing.assert_array_equal(moved.variables["a"], v["a"][:, [0, 3, 2, 1]])
  np.testing.assert_allclose(moved.infer(moved.variables, x), fn(v, x), rtol=1e-5)
  cut = graph.keep_channels(moved, {"a": [0, 2]})
  np.testing.assert_array_equal(cut.variables["a"], v["a"][:, [0, 2]])
  expected = jax.nn.relu(x @ v["a"][:, [0, 2]]) @ v["b"][jnp.array([0, 2])]
  np.testing.assert_allclose(cut.infer(cut.variables, x), expected, rtol=1e-6)


@pytest.mark.parametrize(
  "change, words",
  [
    ({"leaf": "aa"}, "unknown leaf 'aa'; did you mean 'a'"),
    ({"axis": 2}, "'a' has 2 axes; expected one of them, got 2"),
    ({"order": [0, 1, 2]}, r"the order of axis 1 of 'a' is \[0, 1, 2\]; expected each of 0 to 3 once"),
    ({"order": [0, 0, 1, 2]}, "expected each of 0 to 3 once"),
    ({"order": [[0, 1, 2, 3]]}, "expected each of 0 to 3 once"),
    ({"leaf": "b", "order": [1, 0]}, "'b' cannot be put in another order: the function returns them"),
    ({"axis": 0, "order": [1, 0, 2]}, "'a' cannot be put in another order: they go with those of the function's input"),
  ],
)
def test_mistakes_are_named(change, words):
  fn, v = dense_dense(jax.nn.relu)
  with pytest.raises(UserError, match=words):
    graph.permute(graph.net(fn, v, jnp.ones((5, 3))), **{"leaf": "a", "axis": 1, "order": [1, 0, 2, 3], **change})


def first(x):
  return x * x.argmax(1, keepdims=True).astype(x.dtype)


@pytest.mark.parametrize("between", [lambda x: jnp.cumsum(x, 1), lambda x: jnp.sort(x, 1), first])
def test_operations_that_depend_on_the_order_are_refused(between):
  fn, v = dense_dense(between)
  with pytest.raises(UserError, match="'a' cannot be put in another order: they cannot be followed through"):
    graph.permute(graph.net(fn, v, jnp.ones((5, 3))), "a", 1, [1, 0, 2, 3])
