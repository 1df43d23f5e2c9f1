"""The parts of axes: flattened maps in both layouts, heads, and operations that are not followed."""

import jax
import jax.numpy as jnp
import pytest

from leanax import graph

X = jnp.zeros((1, 4, 6, 3))


def head(flatten, features=72):
  """A dense layer that reads a map, flattened in some way."""
  return lambda v, x: flatten(jax.nn.relu(x + v["offset"])) @ v["w"], {
    "w": jnp.zeros((features, 5)),
    "offset": jnp.zeros(3),
  }


@pytest.mark.parametrize(
  "flatten, sizes",
  [
    (lambda x: x.reshape(1, -1), (4, 6, 3)),
    (lambda x: x.transpose(0, 3, 1, 2).reshape(1, -1), (3, 4, 6)),
    (lambda x: jnp.tanh(x.reshape(1, -1)) * 2, (4, 6, 3)),
  ],
  ids=["last", "first", "after"],
)
def test_a_flattened_map(flatten, sizes):
  fn, v = head(flatten)
  made = graph.axis_parts(fn, v, X)
  assert made["w"] == (graph.Made(sizes, ("", "", "")), graph.Made((5,)))
  assert made["offset"] == (graph.Made((3,)),)


def test_pooling_before_and_a_mean():
  def pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

  fn, v = head(lambda x: pool(x).reshape(1, -1), 18)
  assert graph.axis_parts(fn, v, X)["w"][0].sizes == (2, 3, 3)
  fn, v = head(lambda x: x.mean((1, 2)), 3)
  assert graph.axis_parts(fn, v, X)["w"][0] == graph.Made((3,))  # the sum over places is not one over channels


def test_heads_are_parts_of_a_projection():
  def fn(v, x):
    return jnp.einsum("bqhd,bkhd->bhqk", *((x @ v[name]).reshape(1, 7, 2, 4) for name in "qk"))

  made = graph.axis_parts(fn, {"q": jnp.zeros((3, 8)), "k": jnp.zeros((3, 8))}, jnp.zeros((1, 7, 3)))
  assert made["q"] == made["k"] == (graph.Made((3,)), graph.Made((2, 4), ("", "")))


def dense_dense(between, width=12):
  return lambda v, x: between(x @ v["a"]) @ v["b"], {"a": jnp.zeros((3, 12)), "b": jnp.zeros((width, 2))}


@pytest.mark.parametrize(
  "between, width, lost",
  [
    (lambda x: jnp.concatenate([x, x], -1), 24, "concatenate"),
    (lambda x: jnp.concatenate([x[:, 6:], x[:, :6]], -1), 12, "concatenate"),
    (lambda x: jnp.sort(x, -1), 12, "sort"),
    (lambda x: x[:, ::-1], 12, "rev"),
  ],
)
def test_operations_that_are_not_followed_are_named(between, width, lost):
  fn, v = dense_dense(between, width)
  assert graph.axis_parts(fn, v, jnp.zeros((1, 3)))["b"][0].lost == (lost,)


def test_a_reshape_that_cuts_across_is_named():
  fn, v = dense_dense(lambda x: x.reshape(1, 2, 6).reshape(1, 3, 4).reshape(1, 12))
  made = graph.axis_parts(fn, v, jnp.zeros((1, 3)))
  assert made["a"][1] == graph.Made((2, 6), ("reshape", "reshape"))
  assert made["b"][0] == graph.Made((3, 4), ("reshape", "reshape"))
  fn, v = dense_dense(lambda x: x.reshape(1, 2, 6).reshape(1, 12) + x.reshape(1, 4, 3).reshape(1, 12))
  assert all(graph.axis_parts(fn, v, jnp.zeros((1, 3)))["b"][0].lost)


def test_axes_lost_before_flattening_stay_lost():
  fn, v = head(lambda x: jnp.concatenate([x, x], -1).reshape(1, -1), 144)
  assert graph.axis_parts(fn, v, X)["w"][0] == graph.Made((4, 6, 6), ("", "", "concatenate"))


def test_a_softmax_keeps_the_order():
  fn, v = dense_dense(jax.nn.softmax)
  assert graph.axis_parts(fn, v, jnp.zeros((1, 3)))["b"][0] == graph.Made((12,))
