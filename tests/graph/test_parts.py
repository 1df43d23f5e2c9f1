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


def test_a_part_that_is_split_again_is_its_parts():
  """The features of (2, 6) heads are (2, 3): of a narrower six the leading numbers are those of each of the two."""
  fn, v = dense_dense(lambda x: jnp.tanh(jnp.tanh(x.reshape(1, 2, 6)).reshape(1, 2, 2, 3)).reshape(1, 12))
  made = graph.axis_parts(fn, v, jnp.zeros((1, 3)))
  assert made["a"][1] == made["b"][0] == graph.Made((2, 2, 3), ("", "", ""))


def test_embeddings_and_groups_of_channels_are_followed():
  def embedded(v, x):
    return jax.nn.relu(v["table"][x]) @ v["b"]

  v = {"table": jnp.zeros((9, 4)), "b": jnp.zeros((4, 2))}
  made = graph.axis_parts(embedded, v, jnp.zeros((1, 7), jnp.int32))
  assert made["table"] == (graph.Made((9,), ("gather",)), graph.Made((4,)))
  assert made["b"][0] == graph.Made((4,))

  def grouped(v, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x + v["offset"], v["w"], (1, 1), "SAME", None, None, numbers, 3)

  v = {"offset": jnp.zeros(6), "w": jnp.zeros((3, 3, 2, 12))}
  made = graph.axis_parts(grouped, v, jnp.zeros((1, 4, 4, 6)))
  assert made["offset"] == (graph.Made((3, 2), ("", "")),)
  assert made["w"][2:] == (graph.Made((2,)), graph.Made((3, 4), ("", "")))


def test_layers_of_a_scan_are_in_order():
  def fn(v, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, v["w"])[0]

  made = graph.axis_parts(fn, {"w": jnp.zeros((3, 4, 4))}, jnp.zeros((1, 4)))
  assert made["w"] == (graph.Made((3,)), graph.Made((4,)), graph.Made((4,)))
