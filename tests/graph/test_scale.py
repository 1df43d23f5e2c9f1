"""Factors moved from one layer to the next: numbers by hand in float64, and outputs as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from leanax import graph
from leanax.core.errors import UserError
from tests.graph import models

FACTORS = np.array([0.5, 3.0, 1.0, 0.1])
normal = models.normal


def scaled(fn, v, x, leaf, axis, factors=FACTORS):
  """The net with moved factors, whose outputs are the same."""
  net = graph.move_scale(graph.net(fn, v, x), leaf, axis, factors)
  found, expected = (jax.jit(fn)(one, x) for one in (net.variables, v))
  size = float(jnp.abs(expected).max())
  np.testing.assert_allclose(found / size, expected / size, atol=2e-6)
  np.testing.assert_array_equal(net.infer(net.variables, x), fn(net.variables, x))
  return net.variables


def powers(before, after):
  """By leaf the (axis, power) of the factors; the oracle is a search over all of them, in float64."""
  found = {}
  for name, leaf in before.items():
    leaf, new = np.float64(leaf), np.float64(after[name])
    for axis in range(leaf.ndim):
      for power in (-1, 1):
        wide = [-1 if a == axis else 1 for a in range(leaf.ndim)]
        if leaf.shape[axis] == 4 and np.allclose(new, leaf * (FACTORS**power).reshape(wide), rtol=1e-6, atol=0):
          found[name] = (axis, power)
    if name not in found and not np.array_equal(new, leaf):
      found[name] = None
  return found


def test_two_layers_by_hand():
  v = {"a": normal(0, 3, 4), "b": normal(1, 4), "c": normal(2, 4, 2), "d": normal(3, 2)}
  x = normal(4, 5, 3)
  found = scaled(lambda v, x: jax.nn.relu(x @ v["a"] + v["b"]) @ v["c"] + v["d"], v, x, "a", -1)
  a, b, c, d = (np.float64(v[name]) for name in "abcd")
  expected = {"a": a * FACTORS, "b": b * FACTORS, "c": c / FACTORS[:, None], "d": d}
  for name in v:
    np.testing.assert_allclose(found[name], expected[name], rtol=3e-7)
  whole = np.maximum(np.float64(x) @ expected["a"] + expected["b"], 0) @ expected["c"] + d
  np.testing.assert_allclose(whole, np.maximum(np.float64(x) @ a + b, 0) @ c + d, rtol=1e-12)


def pool(x, init, op, size=2):
  return lax.reduce_window(x, init, op, (1, size, size, 1), (1, size, size, 1), "SAME")


HOMOGENEOUS = {
  "identity": lambda x: x,
  "relu": jax.nn.relu,
  "maximum": lambda x: jnp.maximum(x, 0),
  "leaky relu": lambda x: jax.nn.leaky_relu(x, 0.2),
  "absolute": lambda x: -jnp.abs(x) * 3,
  "where": lambda x: jnp.where(x > 0, x, 0.0),
  "max pool": lambda x: pool(x, -jnp.inf, lax.max),
  "average pool": lambda x: pool(x, 0.0, lax.add) / 4,
  "mean": lambda x: x.mean((1, 2), keepdims=True),
  "padded": lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 2), (0, 0))),
  "transposed": lambda x: x.transpose(3, 0, 2, 1).transpose(1, 3, 2, 0)[:, ::-1],
  "half": lambda x: x.astype(jnp.bfloat16).astype(jnp.float32) * 0 + x,
  "checkpoint": jax.checkpoint(lambda x: jax.nn.relu(x)),
  "branch": lambda x: lax.cond(jnp.zeros(()) < 1, jnp.abs, jax.nn.relu, x),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("between", HOMOGENEOUS)
def test_what_is_homogeneous_is_passed(between):
  def fn(v, x):
    return HOMOGENEOUS[between](x @ v["a"] + v["b"]) @ v["c"]

  v = {"a": normal(0, 3, 4), "b": normal(1, 4), "c": normal(2, 4, 2)}
  found = scaled(fn, v, normal(4, 2, 4, 4, 3), "a", 1)
  assert powers(v, found) == {"a": (1, 1), "b": (0, 1), "c": (0, -1)}


NOT = {
  "tanh": jnp.tanh,
  "logistic": jax.nn.silu,
  "erf": lambda x: jax.nn.gelu(x, approximate=False),
  "exp": jax.nn.elu,
  "min": jax.nn.relu6,
  "clamp": lambda x: lax.clamp(0.0, x, 6.0),
  "integer_pow": lambda x: x**3,
  "max": lambda x: jnp.maximum(x, 1e-3),
  "add": lambda x: x + 1,
  "reduce_sum": lambda x: x - x.mean(1, keepdims=True),
  "reduce_max": lambda x: x - x.max(1, keepdims=True),
  "sort": lambda x: jnp.sort(x, 1),
  "rev": lambda x: x[:, ::-1],
  "gt": lambda x: jnp.where(x > 0.5, x, 0.0),
  "convert_element_type": lambda x: x.astype(jnp.int32).astype(jnp.float32),
  "while": lambda x: lax.while_loop(lambda x: x.sum() < 0, jax.nn.relu, x),
  "constant": lambda x: x + np.arange(4.0, dtype=np.float32),
}


@pytest.mark.parametrize("name", NOT)
def test_what_is_not_is_refused_by_name(name):
  v = {"a": normal(0, 3, 4), "c": normal(2, 4, 2)}
  net = graph.net(lambda v, x: NOT[name](x @ v["a"]) @ v["c"], v, normal(4, 5, 3))
  with pytest.raises(
    UserError, match=f"the channels of 'a' cannot be scaled: they cannot be followed through .*{name}"
  ):
    graph.move_scale(net, "a", 1, FACTORS)


def conv(x, w, groups=1):
  return lax.conv_general_dilated(x, w, (1, 1), "SAME", None, None, ("NHWC", "HWIO", "NHWC"), groups)


def test_convolutions_depthwise_too():
  def fn(v, x):
    x = jax.nn.relu(conv(x, v["first"]) + v["bias"])
    return conv(jax.nn.relu(conv(x, v["depth"], 4) + v["more"]), v["last"])

  shapes = {"first": (3, 3, 2, 4), "bias": (4,), "depth": (3, 3, 1, 4), "more": (4,), "last": (1, 1, 4, 3)}
  v = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
  x = normal(9, 2, 5, 5, 2)
  assert powers(v, scaled(fn, v, x, "first", 3)) == {"first": (3, 1), "bias": (0, 1), "depth": (3, -1)}
  assert powers(v, scaled(fn, v, x, "depth", 3)) == {"depth": (3, 1), "more": (0, 1), "last": (2, -1)}


def test_flattened_maps_and_concatenated_branches():
  def fn(v, x):
    a, b = jax.nn.relu(conv(x, v["a"])), conv(x, v["b"])
    return jnp.concatenate([b, a], 3).reshape(len(x), -1) @ v["c"]

  v = {"a": normal(0, 1, 1, 2, 4), "b": normal(1, 1, 1, 2, 3), "c": normal(2, 9 * 7, 2)}
  found = scaled(fn, v, normal(3, 2, 3, 3, 2), "a", 3)
  by_place = np.float64(v["c"]).reshape(9, 7, 2) / np.concatenate([np.ones(3), FACTORS])[:, None]
  np.testing.assert_allclose(found["c"], by_place.reshape(63, 2), rtol=3e-7)
  np.testing.assert_array_equal(found["b"], v["b"])


def test_all_writers_of_a_residual_stream_and_all_its_readers():
  def fn(v, x):
    h = x @ v["stem"]
    h = h + jax.nn.relu(h @ v["up"]) @ v["down"]
    return (h * v["gain"]) @ v["head"] + h @ v["other"]

  shapes = {"stem": (3, 4), "up": (4, 6), "down": (6, 4), "gain": (4,), "head": (4, 2), "other": (4, 2)}
  v = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
  expected = {"stem": (1, 1), "up": (0, -1), "down": (1, 1), "gain": (0, -1), "other": (0, -1)}
  for leaf, axis in (("stem", 1), ("down", 1)):
    assert powers(v, scaled(fn, v, normal(9, 5, 3), leaf, axis)) == expected
  assert powers(v, scaled(fn, v, normal(9, 5, 3), "gain", 0)) == {"gain": (0, 1), "head": (0, -1)}
  bare = {name: leaf for name, leaf in v.items() if name != "gain"}
  with pytest.raises(UserError, match="'stem' cannot be scaled: .* 'reduce_sum'"):
    graph.move_scale(
      graph.net(lambda v, x: fn({**v, "gain": jax.nn.standardize(x @ v["stem"])}, x), bare, v["up"].T[:, :3]),
      "stem",
      1,
      FACTORS,
    )


def test_queries_against_keys_and_layers_of_a_scan():
  def fn(v, x):
    q, k = x @ v["q"] + v["bias"], x @ v["k"]
    x = jax.nn.softmax(q @ k.T) @ x
    return lax.scan(lambda x, w: (jax.nn.relu(x @ w["in"]) @ w["out"], None), x, v["layers"])[0]

  shapes = {"q": (3, 4), "bias": (4,), "k": (3, 4)}
  v = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
  layers = {"in": normal(5, 4, 3, 4), "out": normal(6, 4, 4, 3)}
  found = scaled(lambda u, x: fn({**u, "layers": layers}, x), v, normal(9, 5, 3), "q", 1)
  assert powers(v, found) == {"q": (1, 1), "bias": (0, 1), "k": (1, -1)}
  found = scaled(lambda u, x: fn({**v, "layers": u}, x), layers, normal(9, 5, 3), "in", 2)
  assert powers(layers, found) == {"in": (2, 1), "out": (1, -1)}
  for leaf, axis in (("in", 0), ("out", 0), ("out", 2)):
    with pytest.raises(UserError, match=f"the channels of '{leaf}' cannot be scaled: they cannot be followed through"):
      graph.move_scale(
        graph.net(lambda u, x: fn({**v, "layers": u}, x), layers, normal(9, 5, 3)),
        leaf,
        axis,
        np.arange(1.0, 1 + layers[leaf].shape[axis]),
      )


def test_a_shared_leaf_is_scaled_once_or_refused():
  v = {"a": normal(0, 3, 4)}
  assert powers(v, scaled(lambda v, x: jax.nn.relu(x @ v["a"]) @ (1 / v["a"]).T, v, normal(1, 5, 3), "a", 1)) == {
    "a": (1, 1)
  }
  with pytest.raises(UserError, match="'a' cannot be scaled: they cannot be followed through 'dot_general'"):
    graph.move_scale(graph.net(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["a"].T, v, normal(1, 5, 3)), "a", 1, FACTORS)


def test_other_axes_types_and_powers_of_two():
  v = {"a": normal(0, 3, 4).astype(jnp.bfloat16), "c": normal(1, 4, 2).astype(jnp.bfloat16)}
  net = graph.net(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["c"], v, normal(2, 5, 3).astype(jnp.bfloat16))
  moved = graph.move_scale(net, "a", 1, jnp.array([0.5, 2.0, 1.0, 64.0]))
  assert moved.variables["a"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(moved.infer(moved.variables, *net.example), net.infer(net.variables, *net.example))
  with pytest.raises(UserError, match="'a' cannot be scaled: they cannot be followed through an input of the function"):
    graph.move_scale(net, "a", 0, np.ones(3))
  heads = {"a": normal(0, 3, 8), "c": normal(1, 8, 2)}
  net = graph.net(lambda v, x: (x @ v["a"]).reshape(-1, 2, 4).reshape(-1, 8) @ v["c"], heads, normal(2, 5, 3))
  with pytest.raises(UserError, match="axis 1 of 'a' is made of several axes, 2 and 4 long; expected channels of one"):
    graph.move_scale(net, "a", 1, np.ones(8))
  net = graph.net(lambda v, x: (x @ v["a"]) @ v["c"], {"a": normal(0, 3, 4), "c": normal(1, 4, 2)}, normal(2, 5, 3))
  with pytest.raises(UserError, match="the factors take 'c' out of the range of float32"):
    graph.move_scale(net, "a", 1, [1, 1, 1, 1e-50])


def test_channels_that_the_function_returns_stay_as_they_are():
  v = {"a": normal(0, 3, 4), "c": normal(1, 4, 4)}
  net = graph.net(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["c"], v, normal(2, 5, 3))
  with pytest.raises(
    UserError, match="'c' cannot be scaled: they cannot be followed through an output of the function"
  ):
    graph.move_scale(net, "c", 1, FACTORS)


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_padding_of_numbers_is_refused(value):
  v = {"a": normal(0, 3, 4), "c": normal(1, 4, 2)}
  padded = lambda x: jnp.pad(x, ((0, 0), (0, 1), (0, 0)), constant_values=value)
  net = graph.net(lambda v, x: padded(x @ v["a"]) @ v["c"], v, normal(2, 5, 2, 3))
  with pytest.raises(UserError, match="'a' cannot be scaled: they cannot be followed through 'pad'"):
    graph.move_scale(net, "a", 1, FACTORS)


def test_statistics_keep_their_numbers():
  """A kernel in front of a batch norm that is not folded: its channels would leave their statistics."""
  v = {
    "params": {"a": normal(0, 3, 4), "c": normal(1, 4, 2)},
    "batch_stats": {"mean": normal(2, 4), "var": jnp.ones(4)},
  }

  def fn(v, x):
    stats = v["batch_stats"]
    return ((x @ v["params"]["a"] - stats["mean"]) * jax.lax.rsqrt(stats["var"] + 1e-5)) @ v["params"]["c"]

  with pytest.raises(UserError, match="'a' cannot be scaled: they cannot be followed through 'batch_stats/mean'"):
    graph.move_scale(graph.net(fn, v, normal(3, 5, 3)), "a", 1, FACTORS)


def test_numbers_that_would_vanish_are_refused():
  v = {"a": jnp.full((3, 4), 1e-20), "c": jnp.full((4, 2), 1e-20)}
  net = graph.net(lambda v, x: (x @ v["a"]) @ v["c"], v, normal(2, 5, 3))
  with pytest.raises(UserError, match="the factors take 'a' out of the range of float32"):
    graph.move_scale(net, "a", 1, [1, 1, 1, 1e-25])
