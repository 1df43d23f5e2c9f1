"""Networks that join, split, spread and choose activations: their codes are moved, on grids that the parts share."""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy import ir, moves, reference
from quant.quantize import quantize
from tests.numbers import initial, normal


class Joins(nn.Module):
  """Space to depth, layers joined with all before them, halves that are shuffled, a skip over a resize, two heads."""

  @nn.compact
  def __call__(self, x):
    conv = lambda size, x: nn.relu(nn.Conv(size, (1, 1))(x))
    x = jnp.concatenate([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
    skip = nn.relu6(nn.Conv(4, (3, 3))(x))
    y = conv(4, nn.max_pool(skip, (2, 2), (2, 2)))
    y = jnp.concatenate([y, conv(4, y)], -1)
    y = jnp.concatenate([y, conv(4, y)], -1)
    left, right = jnp.split(y, 2, -1)
    y = jnp.stack([left, conv(6, right)], -1).reshape(y.shape)
    right = conv(6, y[..., 6:])
    y = jnp.concatenate([y[..., :6], nn.hard_swish(right), right], -1)
    up = jax.image.resize(y, (len(x), *skip.shape[1:3], y.shape[-1]), "nearest")
    z = jnp.where(np.tri(6, dtype=bool)[:, :, None], jnp.concatenate([up, skip], -1), 0.0)
    peak = jnp.pad(jnp.maximum(y[:, 0], y[:, 1]).max(1), ((0, 0), (1, 1)), mode="reflect")
    # Only a sigmoid reads the heads, whose join has no name, and a ReLU a part of what has one grid.
    heads = jnp.concatenate([nn.Conv(2, (1, 1))(one).reshape(len(x), -1, 2) for one in (y, z)], 1)
    sizes = nn.Conv(2, (1, 1))(y)
    detected = {"scores": nn.sigmoid(heads), "sizes": nn.relu(sizes[..., 1:]), "other": nn.sigmoid(sizes[..., :1])}
    return {"map": nn.Conv(3, (1, 1))(z), "peak": nn.Dense(3)(peak), **detected}


def calibrated(fn, variables, x, setting="w8a8"):
  model = quantize(fn, setting)
  state = model.calibrate(variables, [x])
  inputs = x if isinstance(x, tuple) else (x,)
  network = deploy.lift(fn, variables, x, model.grids(*state, variables, *inputs))
  return network, jax.jit(model.apply)(*state, variables, *inputs)[0]


def check_codes(network, x, simulated):
  for one in (deploy.litert(), deploy.onnx())[: 1 + bool(importlib.util.find_spec("onnxruntime"))]:
    found = deploy.parity(network, one.open(one.write(network)), x, simulated)
    assert {pair: mismatch.count for pair, mismatch in found.items()} == dict.fromkeys(found, 0)
  plain = deploy.litert(kernels="reference").open(deploy.litert().write(network)).batches(x)
  jax.tree.map(np.testing.assert_array_equal, plain, reference.run(network, x, "litert"))


def test_codes_of_joined_activations_are_those_of_the_simulation():
  x = normal(0, (40, 12, 12, 2))
  network, simulated = calibrated(Joins().apply, initial(Joins(), x[:1], seed=1), x)
  floats = {type(layer) for layer in network.layers if network.tensors[layer.output].dtype == "float32"}
  assert floats == {ir.Dequantize, ir.Activation}
  kinds = {type(layer) for layer in network.layers}
  assert {ir.Concat, ir.Slice, ir.Resize, ir.Pad, ir.Binary, ir.Reduce, ir.Select} <= kinds
  check_codes(network, x, simulated)


def test_a_simulation_is_no_network_and_its_file_not_that_of_the_float_one():
  v, x = {"a": normal(0, (3, 2))}, normal(1, (4, 3))
  fn = lambda v, x: x @ v["a"]
  model = quantize(fn, "w8a8")
  state = model.calibrate(v, [x])
  with pytest.raises(UserError, match="of a quantized model lift the float function, with `grids=`"):
    deploy.lift(lambda v, x: model.apply(*state, v, x)[0], v, x)
  file = deploy.litert().open(deploy.litert().write(calibrated(fn, v, x)[0]))
  with pytest.raises(UserError, match="is float32 in the network and codes in the file, which is another's"):
    deploy.parity(deploy.lift(fn, v, x), file, x)


def joined(v, x, ids):
  tokens = x @ v["a"]
  largest = jnp.broadcast_to(tokens.max(1, keepdims=True), (len(x), 2, 6))
  constant = jnp.tile(v["class"][None], (len(x), 1, 1))
  return jnp.concatenate([constant, tokens, largest, x, v["table"][ids]], 1) @ v["b"]


def test_what_is_joined_from_elsewhere_is_rounded_before():
  v = {name: normal(at, (6, 6)) for at, name in enumerate(("a", "b", "table"))} | {"class": normal(4, (1, 6))}
  x = normal(5, (20, 4, 6)), np.arange(40, dtype=np.int32).reshape(20, 2) % 6
  network, simulated = calibrated(joined, v, x)
  kinds = [type(layer) for layer in network.layers if network.tensors[layer.output].dtype != "int32"]
  codes = [ir.Dense, ir.Reduce, ir.Gather, ir.Broadcast, ir.Concat, ir.Dense]
  assert [kind for kind in kinds if kind not in (ir.Dequantize, ir.Quantize)] == codes
  assert kinds.count(ir.Dequantize) == 1  # the input alone is on another grid
  assert all(one.dtype == "int8" for one in network.tensors.values() if one.data is not None and one.data.ndim == 2)
  check_codes(network, x, simulated)


def test_grids_go_from_what_is_read_to_what_is_made_and_back():
  names, shape = ("x", "a", "b", "c"), (None, 4)
  tensors = {name: ir.Tensor(name, shape) for name in names}
  tensors["zeros"] = ir.Tensor("zeros", (1, 4), data=np.zeros((1, 4), np.float32))
  part = lambda name, source, made: ir.Slice(name, (source,), made, (0, 0), (None, 4), (1, 1))
  grid, other = ir.grid(0.5, 3), ir.grid(0.25, 3)

  def found(layers, grids, outputs=()):
    network = ir.Network(tuple(layers), tensors, {"x": "x"}, {name: name for name in outputs})
    return moves.activations(network, grids)

  once = [part("first", "x", "a")]
  assert found(once, {"x": grid}) == {"x": grid, "a": grid}
  assert found(once, {"a": grid}) == {"a": grid, "x": grid}
  assert found(once, {"a": grid, "x": other}) == {"a": grid, "x": other}
  assert found(once, {"a": grid}, ["x", "a"]) == {"a": grid}  # the values before are given out
  twice = [*once, part("second", "x", "b")]
  assert found(twice, {"a": grid, "b": grid}) == {"a": grid, "b": grid, "x": grid}
  assert found(twice, {"a": grid, "b": other}) == {"a": grid, "b": other}
  assert found([*once, ir.Activation("sine", ("x",), "b", "sin")], {"a": grid}) == {"a": grid}
  # Constants and paddings must be on the grid, where nothing rounds them.
  join = [ir.Concat("join", ("x", "zeros"), "c", 1)]
  assert found(join, {"x": grid})["c"] == grid
  for value, there in ((1.5, True), (1.6, False), (-np.inf, False), (64.0, False)):
    pad = [ir.Pad("pad", ("x",), "c", ((0, 0), (0, 1)), value=value)]
    assert ("c" in found(pad, {"x": grid})) == there
