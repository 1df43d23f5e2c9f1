"""Operators that move, choose, compare and reduce numbers: lifted, interpreted, and run in the real runtime."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy import ir, litert, reference
from tests.deploy.runtimes import runners
from tests.numbers import normal

IMAGE, ROWS, IDS = (6, 5, 4), (7, 3), (5,)
TABLE = normal(1, (7, 3))
EVERY = slice(None)


def padded(mode):
  return lambda x: jnp.pad(x, ((0, 0), (1, 2), (2, 1), (0, 0)), mode=mode)


def resized(height, width, method="nearest"):
  return lambda x: jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), method)


def window_sum(window, strides, padding="VALID"):
  return lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, *window, 1), (1, *strides, 1), padding)


def window_sum_first(x):
  return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 1, 2, 2), (1, 1, 1, 2), "VALID")


def relu_behind_pool(x):
  y = jax.lax.conv_general_dilated(x, TABLE[:, None], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))
  return jnp.concatenate([jnp.maximum(nn.max_pool(y, (2,), (2,)), 0), y], 1)


# Operator: the function, the shape of its input, and the layers that it becomes.
IMAGES = {
  "index": (lambda x: x[:, 0], "Slice Reshape"),
  "last index": (lambda x: x[:, -1], "Slice Reshape"),
  "strided slice": (lambda x: x[:, ::2, 1:4], "Slice"),
  "slice of a slice": (lambda x: x[:, 1:][:, ::2][..., :3], "Slice"),
  "flip": (lambda x: x[:, ::-1], "Gather"),
  "two index arrays": (lambda x: x[:, np.array([0, 2, 1]), np.array([1, 1, 0])], "Reshape Gather Reshape"),
  "take": (lambda x: jnp.take(x, np.array([0, 2, 1, 1]), axis=3), "Gather"),
  "take one": (lambda x: x[:, np.array([1])], "Slice"),
  "take along an axis": (lambda x: jnp.take_along_axis(x, jnp.ones((x.shape[0], 1, 5, 4), jnp.int32), axis=1), "Slice"),
  "dynamic slice": (lambda x: jax.lax.dynamic_slice_in_dim(x, 9, 3, axis=1), "Slice"),
  "dynamic slice per example": (jax.vmap(lambda x: jax.lax.dynamic_slice_in_dim(x, 1, 3, axis=0)), "Slice"),
  "split": (lambda x: jnp.split(x, 2, axis=3)[1], "Slice"),
  "split, swapped and joined": (lambda x: jnp.concatenate(jnp.split(x, 2, axis=3)[::-1], -1), "Gather"),
  "split and joined": (lambda x: jnp.concatenate(jnp.split(x, 2, axis=3), -1).mean(2), "Reduce"),
  "roll": (lambda x: jnp.roll(x, (1, -2), axis=(1, 2)), "Gather Gather"),
  "tile": (lambda x: jnp.tile(x, (1, 2, 1, 3)), "Gather Gather"),
  "repeat": (lambda x: jnp.repeat(x, 3, axis=3), "Gather"),
  "stack": (lambda x: jnp.stack([x[:, 0], x[:, 2]], 1), "Slice"),
  "stack of halves": (lambda x: jnp.stack([x[..., :2], x[..., 2:]], -1), "Slice Reshape Slice Reshape Concat"),
  "reflect": (padded("reflect"), "Pad"),
  "symmetric": (padded("symmetric"), "Pad"),
  "edge": (padded("edge"), "Gather Gather"),
  "wrap": (padded("wrap"), "Gather Gather"),
  "pad": (padded("constant"), "Pad"),
  "pad channels": (lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (1, 0)), constant_values=1.5), "Pad"),
  "pad and cut": (lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (-1, 2, 0), (0, 0, 0), (1, -2, 0))), "Slice Pad"),
  "nearest": (resized(12, 10), "Resize"),
  "nearest, odd": (resized(7, 9), "Resize"),
  "nearest, smaller": (resized(3, 2), "Slice"),
  "bilinear": (resized(12, 10, "bilinear"), "Resize"),
  "bilinear, odd": (resized(7, 9, "bilinear"), "Resize"),
  "bilinear, columns alone": (resized(6, 9, "bilinear"), "Resize"),
  "bilinear, smoothed": (resized(3, 5, "bilinear"), "Transpose Dense Transpose"),
  "bilinear, not smoothed": (
    lambda x: jax.image.resize(x, (x.shape[0], 4, 3, 4), "bilinear", antialias=False),
    "Resize",
  ),
  "nearest by repeat": (lambda x: jnp.repeat(jnp.repeat(x, 2, axis=1), 3, axis=2), "Resize"),
  "nearest by axes": (
    lambda x: jnp.broadcast_to(x[:, :, None, :, None], (x.shape[0], 6, 2, 5, 2, 4)).reshape(-1, 12, 10, 4),
    "Resize",
  ),
  "depth to space": (
    lambda x: x.reshape(-1, 6, 5, 2, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 12, 10, 1),
    "Reshape Transpose Reshape",
  ),
  "channel shuffle": (
    lambda x: x.reshape(-1, 6, 5, 2, 2).swapaxes(3, 4).reshape(x.shape),
    "Reshape Transpose Reshape",
  ),
  "to NCHW": (lambda x: x.transpose(0, 3, 1, 2), "Transpose"),
  "batch moved and back": (lambda x: x.transpose(1, 0, 2, 3).transpose(1, 0, 3, 2), "Transpose"),
  "an axis of one moved": (lambda x: x.reshape(-1, 6, 1, 20).swapaxes(1, 2).reshape(x.shape)[:, 1:], "Slice"),
  "six axes": (lambda x: x.reshape(-1, 2, 3, 5, 2, 2).transpose(0, 5, 4, 3, 2, 1), "Reshape Transpose"),
  "spread": (lambda x: jnp.broadcast_to(x[:, :, None], (x.shape[0], 6, 3, 5, 4)), "Reshape Broadcast"),
  "max": (lambda x: x.max((1, 2)), "Reduce"),
  "max, axes kept": (lambda x: x.max(1, keepdims=True), "Reduce"),
  "min": (lambda x: x.min(-1), "Reduce"),
  "prod": (lambda x: x.prod(-1), "Reduce"),
  "sum": (lambda x: x.sum((1, 2)), "Reduce"),
  "sum, axes kept": (lambda x: x.sum((1, 2), keepdims=True), "Reduce"),
  "mean of rows": (lambda x: x.mean(-1, keepdims=True), "Reduce"),
  "mean of all": (lambda x: x.mean((1, 2, 3)), "Reduce"),
  "mean of positions": (lambda x: x.mean((1, 2)), "Mean"),
  "any": (lambda x: jnp.any(x > 0.9, axis=(1, 2)), "Compare Reduce"),
  "all": (lambda x: jnp.all(x > -2, axis=1), "Compare Reduce"),
  "cumsum": (lambda x: jnp.cumsum(x, axis=1), "CumSum"),
  "cumsum from the end": (lambda x: jax.lax.cumsum(x, 2, reverse=True), "CumSum"),
  "argmax": (lambda x: jnp.argmax(x, -1), "ArgMax"),
  "argmin": (lambda x: jnp.argmin(x, 1), "ArgMin"),
  "where, spread": (lambda x: jnp.where(x > x[:, :1], x, 1.0), "Slice Compare Select"),
  "where, a known mask": (lambda x: jnp.where(np.tri(6, 5, dtype=bool)[:, :, None], x, -1e9), "Select"),
  "where, known": (lambda x: jnp.where(True, x[:, 1:], 0.0), "Slice"),
  "and": (lambda x: (x > 0.3) & (x < 1), "Compare Compare Select"),
  "or, not": (lambda x: ~((x > 0.3) | np.tri(5, 4, dtype=bool)), "Compare Select Select"),
  "compared": (lambda x: x[:, :1] == x, "Slice Compare"),
  "to whole numbers": (lambda x: (3 * x[:, :1] if False else x).astype(jnp.int32), "Cast"),
  "of truth values": (lambda x: (x > 0).astype(jnp.float32), "Compare Cast"),
  "max pool": (lambda x: nn.max_pool(x, (2, 2), (2, 2)), "MaxPool"),
  "sum pool": (window_sum((2, 2), (2, 1)), "Conv2D"),
}
OTHERS = {
  "class token": (
    lambda x: jnp.concatenate([jnp.tile(TABLE[None, :1], (x.shape[0], 1, 1)), x], 1),
    ROWS,
    np.float32,
    "Concat",
  ),
  "constants between": (
    lambda x: jnp.concatenate(
      [TABLE[None, :1] + jnp.zeros((x.shape[0], 1, 3)), x, jnp.ones((x.shape[0], 2, 3)), x[:, :1]], 1
    ),
    ROWS,
    np.float32,
    "Slice Concat",
  ),
  "pad with infinity": (
    lambda x: jnp.pad(x, ((0, 0), (1, 2), (2, 1)), constant_values=-jnp.inf),
    ROWS,
    np.float32,
    "Pad",
  ),
  "average pool without what lies outside": (
    lambda x: nn.avg_pool(x, (3, 2), (2, 2), "SAME", count_include_pad=False),
    IMAGE,
    np.float32,
    "Conv2D Binary",
  ),
  "pools of channels first": (
    lambda x: window_sum_first(jnp.maximum(nn.max_pool(x, (2, 2), (2, 1)).transpose(0, 3, 1, 2), 0)).mean((2, 3)),
    IMAGE,
    np.float32,
    "MaxPool Relu Conv2D Mean",
  ),
  "a ReLU behind a pool of what others read too": (
    relu_behind_pool,
    (6, 1),
    np.float32,
    "Reshape Conv2D Reshape MaxPool Reshape Relu Concat",
  ),
  "max pool of sequences": (
    lambda x: nn.max_pool(x, (3,), (2,), "SAME"),
    ROWS,
    np.float32,
    "Reshape MaxPool Reshape",
  ),
  "average pool of sequences": (
    lambda x: window_sum((3,), (2,), "SAME")(x) / 3.0,
    ROWS,
    np.float32,
    "Reshape AvgPool Reshape",
  ),
  "sum pool of sequences": (window_sum((3,), (2,)), ROWS, np.float32, "Reshape Conv2D Reshape"),
  "sums and means": (
    lambda x: jnp.concatenate([x.sum(1, keepdims=True), x.mean(1, keepdims=True)], 1),
    ROWS,
    np.float32,
    "Reduce Reduce Concat",
  ),
  "a factor of ones that spreads": (lambda x: x[..., :1] * jnp.ones(4), ROWS, np.float32, "Slice Binary"),
  "a number to compare that spreads": (lambda x: x[..., :1] > jnp.full(4, 0.1), ROWS, np.float32, "Slice Compare"),
  "embedding": (lambda i: jnp.take(TABLE, i, axis=0), IDS, np.int32, "Gather"),
  "embedding by index": (lambda i: TABLE[i], IDS, np.int32, "Gather"),
  "embedding, clipped": (lambda i: jnp.take(TABLE, i, axis=0, mode="clip"), IDS, np.int32, "Gather"),
  "embedding of bytes": (lambda i: TABLE[i], IDS, np.uint8, "Cast Gather"),
  "embedding of one": (lambda i: TABLE[i[:, 0]], IDS, np.int32, "Slice Reshape Gather"),
  "one hot": (lambda i: jax.nn.one_hot(i, 4), IDS, np.int32, "Reshape Compare Cast"),
  "bytes": (lambda i: i.astype(jnp.float32), IDS, np.uint8, "Cast"),
  "sum of whole numbers": (lambda i: i.sum(1), IDS, np.int32, "Reduce"),
  "cumsum of whole numbers": (lambda i: jnp.cumsum(i, axis=1), IDS, np.int32, "CumSum"),
}
CASES = {**{name: (fn, IMAGE, np.float32, layers) for name, (fn, layers) in IMAGES.items()}, **OTHERS}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", CASES)
def test_operators_reach_a_file(name):
  fn, shape, dtype, layers = CASES[name]
  rng = np.random.default_rng(0)
  x = rng.integers(0, 5, (3, *shape)).astype(dtype) if dtype != np.float32 else np.asarray(normal(0, (3, *shape)))
  network = deploy.lift(lambda _, x: fn(x), {}, jax.ShapeDtypeStruct((1, *shape), dtype))
  assert " ".join(type(layer).__name__ for layer in network.layers) == layers
  expected = np.asarray(jax.jit(fn)(x))
  got = reference.run(network, x)
  assert got.dtype == expected.dtype
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  for runner in runners(network):
    for batch in (1, 3):
      np.testing.assert_allclose(runner.run(x[:batch]), expected[:batch], rtol=1e-5, atol=1e-6)


REFUSED = {
  "chooses among the examples": lambda x: x + x[:1],
  "mixes the examples of a batch": lambda x: x - x.max(0),
  "joins batches": lambda x: jnp.concatenate([x, x])[:2],
  "the batch is not the first axis": lambda x: x.transpose(1, 0, 2, 3).max(2).transpose(1, 0, 2),
  "adds examples to the batch": lambda x: jnp.pad(x, ((1, 0), (0, 0), (0, 0), (0, 0)))[1:],
  "between those that are there": lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0))),
  "pads with NaN": lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=jnp.nan),
  "other numbers for each example": lambda x: jnp.concatenate([jnp.arange(2.0).repeat(30).reshape(2, 6, 5, 1), x], 3),
  "cannot be dilated": lambda x: jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", window_dilation=(1, 2, 2, 1)
  ),
  "turns float32 into int8": lambda x: x.astype(jnp.int8),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_layer_is_refused_by_name(reason):
  with pytest.raises(UserError) as caught:
    deploy.lift(lambda _, x: REFUSED[reason](x), {}, jnp.zeros((2, *IMAGE)))
  assert reason in str(caught.value)
  assert "test_shapes.py:" in str(caught.value)


def codes(rng, shape):
  return rng.integers(-128, 128, shape).astype(np.int8)


def test_codes_are_moved_as_they_are():
  """On one grid, in both kernels; a number that is padded becomes its code."""
  grid, wide = ir.grid(0.05, 3), (None, 4, 3, 2)
  pads = ((0, 0), (1, 1), (0, 2), (0, 0))
  entries = ir.Tensor("i", (4,), "int32", data=np.array([1, 0, 1, 1], np.int32))
  cases = [
    (ir.Transpose("l", ("x",), "y", (0, 2, 3, 1)), (None, 3, 2, 4)),
    (ir.Slice("l", ("x",), "y", (0, 1, 0, 0), (None, 4, 3, 2), (1, 2, 1, 1)), (None, 2, 3, 2)),
    (ir.Pad("l", ("x",), "y", pads, value=1.0), (None, 6, 5, 2)),
    (ir.Pad("l", ("x",), "y", pads), (None, 6, 5, 2)),
    (ir.Pad("l", ("x",), "y", pads, mode="reflect"), (None, 6, 5, 2)),
    (ir.Concat("l", ("x", "x"), "y", 2), (None, 4, 6, 2)),
    (ir.Gather("l", ("x", "i"), "y", 1), (None, 4, 3, 2)),
    (ir.Resize("l", ("x",), "y", "nearest"), (None, 8, 6, 2)),
  ]
  x = codes(np.random.default_rng(0), (3, 4, 3, 2))
  for layer, shape in cases:
    tensors = {"x": ir.Tensor("x", wide, "int8", grid), "y": ir.Tensor("y", shape, "int8", grid), "i": entries}
    network = ir.check(ir.Network((layer,), tensors, {"x": "x"}, {"y": "y"}))
    expected = reference.run(network, x)
    for runner in runners(network):
      np.testing.assert_array_equal(runner.codes(x), expected, err_msg=f"{layer} {runner.name}")
    other = {**tensors, "y": tensors["y"]._replace(grid=ir.grid(0.1, 3))}
    with pytest.raises(UserError, match="must have one grid"):
      ir.check(network._replace(tensors=other))


def test_a_padding_of_too_many_axes_is_refused_by_the_file():
  network = deploy.lift(lambda _, x: jnp.pad(x, [(0, 0)] + [(1, 1)] * 5), {}, jnp.zeros((1, 2, 2, 2, 2, 2)))
  with pytest.raises(UserError, match="is a Pad of 6 axes; LiteRT's kernels take 5 at most"):
    litert().check(network)


def test_indices_beyond_a_table_are_the_runtime_s_error():
  network = deploy.lift(lambda _, i: jnp.take(TABLE, i, axis=0), {}, jnp.zeros((1, 5), jnp.int32))
  runner = litert().open(litert().write(network))
  with pytest.raises(UserError, match="the LiteRT runtime refuses"):
    runner.run(np.full((1, 5), 7, np.int32))
  with pytest.raises(UserError, match="was given inputs of float32; it takes int32 as it is"):
    runner.run(np.zeros((1, 5), np.float32))
