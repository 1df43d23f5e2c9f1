"""Models of the zoo and small functions, lifted, written, and run in the real runtime."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from leanax import deploy, graph
from leanax.core.errors import UserError
from leanax.deploy import ir, litert, reference
from leanax.deploy.formats.litert import constants
from leanax.deploy.lifting import recognise
from leanax.zoo.lenet import LeNet5, LeNet300
from leanax.zoo.mlp_nnx import MLP
from leanax.zoo.resnet import ResNet
from quant.grid import Grid
from quant.quantize import quantize
from tests.numbers import array, initial, normal


def linen(module, shape, seed=0):
  x = normal(seed, (64, *shape))
  return module.apply, initial(module, x[:1], seed=seed + 1), x


def lenet300():
  return linen(LeNet300(), (8, 8, 1))


@functools.cache
def lenet300_on_grids(setting="w8a8"):
  fn, variables, x = lenet300()
  model = quantize(fn, setting)
  return fn, variables, x, model.grids(*model.init(variables, x), variables, x)


def lenet5():
  return linen(LeNet5(), (20, 20, 1))


def resnet():
  fn, variables, x = linen(ResNet((1, 1), (8, 16)), (12, 12, 3))
  moved = lambda a: array(a + 0.3 * np.abs(normal(7, a.shape)), a.dtype)
  stats = jax.tree.map(moved, variables["batch_stats"])
  net = graph.fold_batch_norms(graph.net(fn, {**variables, "batch_stats": stats}, x[:1]))
  fn, variables = net.infer, net.variables
  return fn, variables, x


def nnx_mlp():
  definition, state = nnx.split(MLP(64, (20, 12), rngs=nnx.Rngs(0)))
  return lambda v, x: nnx.merge(definition, v)(x), state, normal(0, (64, 8, 8, 1))


class Mixed(nn.Module):
  """Each layer the IR has, a ReLU behind its pool, a padding of its own, and perhaps a ReLU of what others read too."""

  alone: bool = True

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(4, (3, 3))(jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)))))
    x = nn.relu(nn.max_pool(nn.Conv(6, (3, 3), strides=2)(x), (2, 2), (1, 1), padding="SAME"))
    y = nn.Conv(6, (3, 3), feature_group_count=6, kernel_dilation=2)(x)
    x = nn.Conv(6, (1, 1), use_bias=False)(nn.relu(y) if self.alone else y) + y + x
    x = jax.lax.reduce_window(nn.relu(x), 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4.0
    x = nn.Dropout(0.5, deterministic=True)(x).mean((1, 2))
    return nn.Dense(7)(x)


def mixed():
  return linen(Mixed(), (13, 12, 2))


def sole():
  return linen(Mixed(alone=False), (13, 12, 2))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("make", [nnx_mlp, resnet, mixed])
def test_float_files_compute_the_model(make):
  fn, variables, x = make()
  network = deploy.lift(fn, variables, x)
  expected = np.asarray(jax.jit(fn)(variables, x))
  np.testing.assert_allclose(reference.run(network, np.asarray(x)), expected, atol=2e-5)
  for kernels in ("xnnpack", "reference"):
    got = litert(kernels=kernels).open(litert().write(network)).run(np.asarray(x))
    np.testing.assert_allclose(got, expected, atol=2e-5)


# Codes that may differ: sums of floats in the simulation are not exact.
SHARES = {lenet300: 0.0, lenet5: 0.01, resnet: 0.01, sole: 0.01, mixed: 0.01}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("make", SHARES)
def test_int8_files_compute_the_simulation(make):
  fn, variables, x = make()
  model = quantize(fn, "w8a8")
  qparams, state = model.init(variables, x)
  grids = jax.jit(model.grids)(qparams, state, variables, x)
  network = deploy.lift(fn, variables, jax.ShapeDtypeStruct(x.shape, x.dtype), grids)
  assert network.quantized
  simulated, _ = jax.jit(model.apply)(qparams, state, variables, x)
  found = deploy.parity(network, litert().open(litert().write(network)), np.asarray(x), np.asarray(simulated))
  print(make.__name__, {pair: str(mismatch) for pair, mismatch in found.items()})
  assert found["reference/runtime"].count == 0
  assert found["simulation/reference"].max_steps <= 2
  assert found["simulation/reference"].count <= SHARES[make] * found["simulation/reference"].total


def conv(x, kernel):
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def halves(reduce, start, x):
  return jax.lax.reduce_window(x, start, reduce, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def largest(x):
  return halves(jax.lax.max, -jnp.inf, x)


def average(x):
  return halves(jax.lax.add, 0.0, x) / 4.0


def beside(y, branch):
  return branch(y) + y


def both(y, kernel, rectify=nn.relu):
  """A block with pre-activation: its input goes through a ReLU and past it."""
  return beside(y, lambda y: conv(rectify(y), kernel))


def twice(y, one, other):
  return conv(nn.relu(y), one) + conv(nn.relu(y), other)


# A ReLU of what others read too, or of what no layer with weights made; each ends in a mean and a dense layer.
RECTIFIED = {
  "pre-activation": lambda v, x: both(conv(x, v["a"]), v["b"]),
  "pre-activation behind a sum": lambda v, x: both(both(conv(x, v["a"]), v["b"]), v["b"]),
  "pre-activation behind a pool": lambda v, x: both(largest(conv(x, v["a"])), v["b"]),
  "pre-activation of the input": lambda v, x: both(x, v["c"]),
  "plain maximum": lambda v, x: both(conv(x, v["a"]), v["b"], lambda y: jnp.maximum(y, 0)),
  "relu of a lone relu": lambda v, x: both(conv(x, v["a"]), v["b"], lambda y: nn.relu(nn.relu(y))),
  "itself and its ReLU": lambda v, x: beside(conv(x, v["a"]), nn.relu),
  "itself twice": lambda v, x: beside(conv(x, v["a"]), lambda y: y),
  "the input twice": lambda v, x: conv(x + x, v["a"]),
  "relu of the input": lambda v, x: conv(nn.relu(x), v["a"]),
  "relu of a relu": lambda v, x: conv(nn.relu(nn.relu(conv(x, v["a"]))), v["b"]),
  "a relu written twice": lambda v, x: twice(conv(x, v["a"]), v["b"], v["e"]),
  "relu of an average": lambda v, x: nn.relu(average(conv(x, v["a"]))),
  "relu of a mean": lambda v, x: nn.relu(conv(x, v["a"]).mean((1, 2))),
  "relu of a reshape": lambda v, x: nn.relu(conv(x, v["a"]).reshape(-1, 4, 16, 6)),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("setting", [pytest.param("w8a8", marks=pytest.mark.slow), "w8a8 learned"])
@pytest.mark.parametrize("kind", RECTIFIED)
def test_a_relu_with_other_readers_is_simulated_as_the_runtime_computes_it(kind, setting):
  shapes = {"a": (3, 3, 4, 6), "b": (3, 3, 6, 6), "c": (3, 3, 4, 4), "e": (3, 3, 6, 6)}
  variables = {name: normal(seed, shape) / 6 for seed, (name, shape) in enumerate(shapes.items())}
  x = normal(4, (64, 8, 8, 4))
  width = jax.eval_shape(RECTIFIED[kind], variables, x).shape[-1]
  variables["d"] = normal(5, (width, 7)) / 3

  def fn(v, x):
    y = RECTIFIED[kind](v, x)
    return (y.mean((1, 2)) if y.ndim == 4 else y) @ v["d"]

  model = quantize(fn, setting)
  qparams, state = model.init(variables, x)
  network = deploy.lift(fn, variables, x, model.grids(qparams, state, variables, x))
  both_forwards = jax.jit(lambda q, s, v, x: (model.apply(q, s, v, x)[0], fn(v, x)))
  simulated, exact = jax.device_get(both_forwards(qparams, state, variables, x))
  found = deploy.parity(network, litert().open(litert().write(network)), np.asarray(x), simulated)
  # Sums in 21 bits of fixed point, and means: a tie may fall on the other side. Roundings left out move a third.
  for pair in ("simulation/runtime", "reference/runtime"):
    assert found[pair].count <= 0.005 * found[pair].total
    assert found[pair].max_steps <= 1
  signal, noise = (np.square(a.astype(np.float64)).mean() for a in (exact, exact - simulated))
  assert 10 * np.log10(signal / noise) > 25


def test_an_input_of_relus_alone_has_the_grid_of_the_relu():
  variables = {"a": normal(0, (3, 3, 4, 6)), "d": jnp.ones((6, 3))}
  fn = lambda v, x: nn.relu(conv(x, v["a"]).mean((1, 2))) @ v["d"]
  x = normal(1, (8, 6, 6, 4))
  model = quantize(fn, "w8a8")
  network = deploy.lift(fn, variables, x, model.grids(*model.init(variables, x), variables, x))
  relu = next(layer for layer in network.layers if isinstance(layer, ir.Relu))
  made, read = network.tensors[relu.output], network.tensors[relu.inputs[0]]
  assert (made.scale, made.zero_point) == (read.scale, read.zero_point) == (made.scale, -128)


def share_that_differs(fn, variables, x):
  """The share of the output's codes in which the simulation and the runtime differ, in w8a8."""
  model = quantize(fn, "w8a8")
  qparams, state = model.init(variables, x)
  network = deploy.lift(fn, variables, x, model.grids(qparams, state, variables, x))
  simulated = np.asarray(jax.jit(model.apply)(qparams, state, variables, x)[0])
  found = deploy.parity(network, litert().open(litert().write(network)), np.asarray(x), simulated)["simulation/runtime"]
  return found.count / found.total


def test_a_mean_that_keeps_its_axes_is_simulated_as_the_runtime_computes_it():
  variables = {"a": normal(0, (3, 3, 4, 6)), "d": jnp.ones((6, 3))}
  fn = lambda v, x: conv(x, v["a"]).mean((1, 2), keepdims=True).reshape(-1, 6) @ v["d"]
  x = normal(1, (32, 6, 6, 4))
  assert share_that_differs(fn, variables, x) <= 0.01


def parted(v, y):
  return nn.relu(y), conv(y, v["b"])


def test_operations_of_a_dropped_output_change_no_code():
  shapes = {"a": (3, 3, 4, 6), "b": (3, 3, 6, 6), "d": (6, 7)}
  variables = {name: normal(seed, shape) / 6 for seed, (name, shape) in enumerate(shapes.items())}
  fn = lambda v, x: parted(v, conv(x, v["a"]))[0].mean((1, 2)) @ v["d"]
  x = normal(4, (64, 8, 8, 4))
  assert share_that_differs(fn, variables, x) <= 0.01


def test_a_relu_written_twice_on_two_grids_is_refused():
  variables = {name: normal(i, (3, 3, 4, 4)) for i, name in enumerate("abe")}
  fn = lambda v, x: twice(conv(x, v["a"]), v["b"], v["e"])
  x = normal(1, (8, 6, 6, 4))
  model = quantize(fn, "w8a8")
  grids = model.grids(*model.init(variables, x), variables, x)
  moved = dataclasses.replace(grids["a:out"], scale=grids["a:out"].scale * 2)
  with pytest.raises(UserError, match=r"has no grid, and the ReLUs of it have several; compute its ReLU once"):
    deploy.lift(fn, variables, x, {**grids, "a:out": moved})


class Ordered(nn.Module):
  """Layers in a given order: convolution, batch norm, ReLU, pool, a factor."""

  order: str

  @nn.compact
  def __call__(self, x):
    layers = {
      "c": nn.Conv(4, (3, 3)),
      "b": lambda x: nn.BatchNorm(use_running_average=True)(x),  # a norm of its own at each place
      "r": nn.relu,
      "p": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    }
    for name in self.order:
      x = layers[name](x)
    return nn.Dense(3)(x.mean((1, 2)))


def test_a_batch_norm_without_a_layer_before_it_is_a_factor_and_an_offset():
  fn, variables, x = linen(Ordered("bcrp"), (8, 8, 3))
  variables = jax.tree.map(lambda a: a + 0.2 * jnp.abs(normal(5, a.shape)), variables)
  network = deploy.lift(fn, variables, x)
  assert [getattr(layer, "operation", "") for layer in network.layers] == ["mul", "add", "", "", "", ""]
  np.testing.assert_allclose(reference.run(network, np.asarray(x)), jax.jit(fn)(variables, x), atol=2e-5)


def test_a_batch_norm_that_was_not_folded_is_named():
  fn, variables, x = linen(Ordered("cbr"), (8, 8, 3))
  assert len(deploy.lift(fn, variables, x).layers) == 3
  model = quantize(fn, "w8a8")
  with pytest.raises(UserError, match=r"a batch norm must be folded .* graph\.fold_batch_norms"):
    deploy.lift(fn, variables, x, model.grids(*model.init(variables, x), variables, x))


def test_pruned_weights_stay_zero_through_all_of_it():
  fn, variables, x = lenet300()
  mask = jax.tree.map(lambda w: np.random.default_rng(3).random(w.shape) < 0.2, variables)
  variables = jax.tree.map(lambda w, m: jnp.asarray(np.where(m, w, np.zeros_like(w))), variables, mask)
  model = quantize(fn, "w8a8")
  qparams, state = model.init(variables, x)
  network = deploy.lift(fn, variables, x, model.grids(qparams, state, variables, x))
  pruned = sum(int((np.asarray(leaf) == 0).sum()) for leaf in jax.tree.leaves(variables) if leaf.ndim == 2)
  stored = [array for array in constants(litert().write(network)) if array.dtype == np.int8]
  assert sum(array.size for array in stored) == 64 * 300 + 300 * 100 + 100 * 10
  assert sum(int((array == 0).sum()) for array in stored) >= pruned > 30_000


def test_a_relu_behind_its_pool_is_fused_before_it():
  fn, variables, x = mixed()
  layers = deploy.lift(fn, variables, x).layers
  assert [type(layer).__name__ for layer in layers[:3]] == ["Conv2D", "Conv2D", "MaxPool"]
  assert layers[1].relu
  assert layers[0].padding == ((2, 1), (1, 3))
  assert sum(isinstance(layer, ir.Relu) for layer in layers) == 1


def test_names_are_those_of_the_graph():
  fn, variables, x = lenet5()
  network = deploy.lift(fn, variables, x)
  assert network.input == "input"
  assert {"Conv_0/kernel", "Conv_0/kernel:out", "Dense_1/kernel", "Dense_1/kernel:out"} <= set(network.tensors)
  assert network.tensors["Conv_1/kernel"].data.shape == (5, 5, 20, 50)


def test_factors_behind_a_layer_go_into_its_weights():
  variables = {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones(2)}
  fn = lambda v, x: ((x @ v["w"] - v["b"]) * jnp.array([2.0, -3.0]) + 1.0) / jnp.array([4.0, 5.0])
  network = deploy.lift(fn, variables, jnp.zeros((1, 3)))
  assert len(network.layers) == 1
  x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  np.testing.assert_allclose(reference.run(network, x), fn(variables, x), rtol=1e-5, atol=1e-6)
  with pytest.raises(UserError, match="cannot lift 'mul'.*folded into the weights before grids are made"):
    deploy.lift(lambda v, x: (x @ v["w"]) * v["b"], variables, jnp.zeros((1, 3)), grids={})


def convolved(x, kernel, strides=None, padding="SAME", **settings):
  letters = "NDHWC" if x.ndim == 5 else "NHWC"
  names = (letters, f"{letters[1:-1]}IO", letters)
  strides = strides or (1,) * (x.ndim - 2)
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=names, **settings)


W = jnp.ones((4, 4))
REFUSED = {
  "'tan'": lambda v, x: jnp.tan(x @ v),
  "'erf_inv'": lambda v, x: jax.lax.erf_inv(x @ v),
  "'scan'": lambda v, x: jax.lax.scan(lambda c, _: (c @ v, None), x, None, length=65)[0],
  "the batch is not the first axis": lambda v, x: jnp.cumsum((x @ v).T, 0).T,
  "it mixes the examples": lambda v, x: (x @ v).reshape(-1).reshape(-1, 4),
  "both operands depend": lambda v, x: jax.lax.dot_general(x @ v, x @ v, (((1,), (1,)), ((), ()))),
  "a constant has other numbers for each example": lambda v, x: x @ v + jnp.arange(8.0).reshape(2, 4),
  "turns float32 into bfloat16": lambda v, x: (x @ v).astype(jnp.bfloat16),
  "its kernel depends on the input": lambda v, x: convolved(x.reshape(-1, 2, 2, 1), x.reshape(2, 2, 1, 2)),
  "a convolution over 3 axes": lambda v, x: convolved(x.reshape(-1, 1, 2, 2, 1), v.reshape(2, 2, 2, 1, 2)),
  "groups of the batch": lambda v, x: jnp.repeat(
    convolved(x.reshape(-1, 2, 2, 1), v.reshape(2, 2, 1, 4), batch_group_count=2), 2, axis=0
  ),
  "leaves out results": lambda v, x: convolved(
    x.reshape(-1, 2, 2, 1), v.reshape(2, 2, 1, 4), (2, 2), ((1, 1), (1, 1)), lhs_dilation=(3, 3)
  ),
  "is negative": lambda v, x: convolved(x.reshape(-1, 2, 2, 1), v.reshape(2, 2, 1, 4), padding=((-1, 1), (0, 0))),
  "'0', which the function returns, is an input": lambda v, x: (x, x @ v),
  "'output', which the function returns, has no batch axis": lambda v, x: (x @ v).sum(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_operations_without_a_layer_are_refused_by_name(reason):
  with pytest.raises(UserError) as caught:
    deploy.lift(REFUSED[reason], W, jnp.zeros((2, 4)))
  assert reason in str(caught.value)
  assert "\n" not in str(caught.value)
  if "which the function returns" not in reason:
    assert "test_lift.py:" in str(caught.value)


def test_a_refusal_without_a_line_names_the_operation_before_it():
  fn, variables, x = linen(nn.Sequential([nn.Conv(4, (3, 3)), jnp.sort, nn.Conv(4, (1, 1))]), (8, 8, 3))
  with pytest.raises(
    UserError, match=r"cannot lift 'sort'( at test_lift.py:\d+| behind 'layers_0/bias'): the exported"
  ):
    deploy.lift(fn, variables, x)


def kernel_on(grid):
  v, x, grids = one_layer_on_grids()
  return deploy.lift(one_layer, v, x, {**grids, "w": grid}).tensors["w"]


def test_scales_that_are_not_of_output_channels_are_refused():
  """A kernel (5, 3) with three scales along its inputs, or five along its outputs, would be plausible numbers."""
  zero = np.zeros((), np.int32)
  for scale, axis in ((np.ones(5), 0), (np.ones((4, 1)), None), (np.ones(5), None)):
    grid = Grid(scale.astype(np.float32), zero, 8, narrow=True, axis=axis)
    with pytest.raises(UserError, match=r"the kernel 'w' has (4|5) scales for 3|'w' has scales along axis 0"):
      kernel_on(grid)
  for scale in (np.ones((5, 1)), np.ones((5, 3))):  # those of groups
    assert kernel_on(Grid(scale.astype(np.float32), zero, 8, narrow=True)).group == 1
  with pytest.raises(UserError, match="the kernel 'w' is on an unsigned, shifted"):
    kernel_on(dataclasses.replace(one_layer_on_grids()[2]["w"], zero_point=np.full(3, 2, np.int32)))
  for scale, axis in ((np.ones(3), 1), (np.ones(3), -1), (np.ones((1, 3)), None), (np.ones(()), None)):
    one = kernel_on(Grid(scale.astype(np.float32), zero, 4, narrow=True, axis=axis))
    assert one.grid.bits == 4 and one.scale.size == scale.size


def test_several_inputs_and_outputs_have_names():
  v = {"a": normal(0, (4, 3)), "b": normal(1, (5, 3))}

  def fn(v, x):
    hidden = nn.relu(x["left"] @ v["a"])
    return {"sum": hidden + x["right"] @ v["b"], "hidden": hidden}

  x = {"left": normal(2, (7, 4)), "right": normal(3, (7, 5))}
  for given, call in ((x, fn), (tuple(x.values()), lambda v, a, b: fn(v, {"left": a, "right": b}))):
    network = deploy.lift(call, v, jax.tree.map(lambda leaf: leaf[:1], given))
    assert [*network.outputs] == ["hidden", "sum"]
    assert [*network.inputs] == (["left", "right"] if isinstance(given, dict) else ["input", "input_1"])
    file = litert().open(litert().write(network))
    for found in (reference.run(network, given), file.run(given, batch=3)):
      for name, expected in fn(v, x).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)
    assert deploy.parity(network, file, given, fn(v, x))["simulation/runtime"] == (0, 42, 0)
    assert file.latency(runs=2, warm_up=1).runs == 2
  with pytest.raises(UserError, match="the LiteRT file takes 'input', 'input_1'; got 'left', 'right'"):
    file.run(x)
  with pytest.raises(UserError, match="takes 2 inputs, 'input', 'input_1'; got 1"):
    file.run(x["left"])
  with pytest.raises(UserError, match="was given batches of 7 and 1; expected one size"):
    file.codes((x["left"], x["right"][:1]))
  with pytest.raises(UserError, match="has 2 inputs, 'input', 'input_1'; expected one"):
    file.input.shape  # noqa: B018


def test_a_wrongly_recognised_layer_is_caught(monkeypatch):
  fn, variables, x = lenet5()
  true = recognise._TABLE["conv_general_dilated"]

  def shifted(lifter, node):
    true(lifter, node)
    lifter.drafts[-1].kernel = np.roll(lifter.drafts[-1].kernel, 1, axis=0)

  monkeypatch.setitem(recognise._TABLE, "conv_general_dilated", shifted)
  with pytest.raises(UserError, match="cannot lift 'conv_general_dilated'.* computes something else"):
    deploy.lift(fn, variables, x)


GRIDS = {
  "the activation 'input' has 4 bits": ("input", {"bits": 4}),
  "the activation 'input' is on a narrow grid": ("input", {"narrow": True}),
  "the activation 'Dense_0/kernel:out' has no grid": ("Dense_0/kernel:out", None),
  "the kernel 'Dense_1/kernel' has no grid": ("Dense_1/kernel", None),
  "the kernel 'Dense_1/kernel' is on an unsigned": ("Dense_1/kernel", {"signed": False, "narrow": False}),
  "the kernel 'Dense_1/kernel' is on a grid of 'power_of_two'": ("Dense_1/kernel", {"format": "power_of_two"}),
  "the kernel 'Dense_1/kernel' has 7 scales": ("Dense_1/kernel", {"scale": np.ones(7, np.float32)}),
}


@pytest.mark.parametrize("reason", GRIDS)
def test_unsupported_grids_are_refused(reason):
  fn, variables, x, grids = lenet300_on_grids()
  name, change = GRIDS[reason]
  grids = {k: g for k, g in grids.items() if k != name or change is not None}
  if change is not None:
    grids[name] = dataclasses.replace(grids[name], **change)
  with pytest.raises(UserError) as caught:
    deploy.lift(fn, variables, x, grids, islands=False)
  assert reason in str(caught.value)


def test_narrow_weights_and_unsigned_activations_are_served():
  fn, variables, x, grids = lenet300_on_grids("w4a8")
  network = deploy.lift(fn, variables, x, grids)
  codes = network.tensors["Dense_1/kernel"].data
  assert (codes.min(), codes.max()) == (-7, 7)
  close = dataclasses.replace(
    grids["Dense_1/kernel"], scale=grids["Dense_1/kernel"].scale / 4
  )  # as learned ones may be
  codes = deploy.lift(fn, variables, x, {**grids, "Dense_1/kernel": close}).tensors["Dense_1/kernel"].data
  assert (codes.min(), codes.max()) == (-7, 7)
  hidden = dataclasses.replace(grids["Dense_0/kernel:out"], signed=False, zero_point=np.array(0))
  again = deploy.lift(fn, variables, x, {**grids, "Dense_0/kernel:out": hidden})
  assert again.tensors["Dense_0/kernel:out"].zero_point == -128
  assert (reference.run(network, np.asarray(x)) == reference.run(again, np.asarray(x))).all()


def one_layer(v, x):
  return x @ v["w"] + v["b"]


@functools.cache
def one_layer_on_grids():
  rng = np.random.default_rng(0)
  v = {"w": array(rng.normal(size=(5, 3)), jnp.float32), "b": jnp.ones(3)}
  x = array(rng.normal(size=(8, 5)), jnp.float32)
  model = quantize(one_layer, "w8a8")
  return v, x, model.grids(*model.init(v, x), v, x)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("leaf", ["w", "b"])
def test_weights_that_are_not_finite_are_refused(leaf, bad):
  """As codes they would be plausible numbers."""
  v, x, grids = one_layer_on_grids()
  v = {**v, leaf: v[leaf].at[(1,) * v[leaf].ndim].set(bad)}
  with pytest.raises(UserError, match=r"'w.*' holds (NaN or )?infinity"):
    deploy.lift(one_layer, v, x, grids)
  if leaf == "w" or np.isnan(bad):
    with pytest.raises(UserError, match="the kernel or the bias of 'w' holds NaN or infinity"):
      deploy.lift(one_layer, v, x)
  else:  # a class that is never chosen
    never = deploy.lift(one_layer, {**v, "b": -v["b"]}, x)
    np.testing.assert_allclose(reference.run(never, np.asarray(x))[:, 1], -np.inf)


def test_other_functions_without_a_file_are_named():
  v, x, grids = one_layer_on_grids()
  with pytest.raises(UserError, match="the variable 'b' is a shape without numbers; a file needs its array"):
    deploy.lift(one_layer, jax.eval_shape(lambda: v), x)
  with pytest.raises(UserError, match="no layer to lift: it hands its input on"):
    deploy.lift(lambda v, x: x, v, x)
  with pytest.raises(UserError, match="no layer to lift: it gives what does not depend on its input"):
    deploy.lift(lambda v, x: v["w"], v, x)
  with pytest.raises(UserError, match="a factor must be folded .*: graph.fold_batch_norms"):
    deploy.lift(lambda v, x: v["b"] * one_layer(v, x), v, x, grids)
