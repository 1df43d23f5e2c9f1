"""Batch norms that nothing takes up, as layers of integers: the simulation, the reference and both runtimes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from leanax import deploy, graph
from leanax.deploy import ir, litert, reference
from quant.quantize import quantize
from tests.deploy.test_moves import calibrated, check_codes
from tests.numbers import initial, normal


class Preactivation(nn.Module):
  """Two residual blocks with norms in front of their convolutions, and a norm of rows."""

  @nn.compact
  def __call__(self, x):
    norm = functools.partial(nn.BatchNorm, use_running_average=True)
    x = nn.Conv(6, (3, 3))(x)
    for _ in range(2):
      y = nn.Conv(6, (3, 3), use_bias=False)(nn.relu(norm()(x)))
      x = x + nn.Conv(6, (3, 3))(nn.relu(norm()(y)))
    x = nn.relu6(norm(use_scale=False)(x))
    return nn.Dense(3)(norm()(x.mean((1, 2))))


@functools.cache
def preactivation():
  x = normal(0, (40, 8, 8, 3))
  variables = initial(Preactivation(), x[:1], seed=1)
  leaves, tree = jax.tree.flatten(variables)
  varied = jax.tree.unflatten(tree, [leaf + 0.2 * normal(i, leaf.shape) for i, leaf in enumerate(leaves)])
  varied["batch_stats"] = jax.tree.map(jnp.abs, varied["batch_stats"])
  for name, value in (("BatchNorm_0", 0.0), ("BatchNorm_2", -1.5)):
    varied["params"][name]["scale"] = varied["params"][name]["scale"].at[2].set(value)
  return graph.depthwise_batch_norms(graph.fold_batch_norms(graph.net(Preactivation().apply, varied, x[:1]))), x


def test_a_network_of_norms_in_front_is_integers_throughout():
  net, x = preactivation()
  network, simulated = calibrated(net.infer, net.variables, x)
  assert {tensor.dtype for tensor in network.tensors.values() if tensor.data is None} == {"int8"}
  check_codes(network, x, simulated)
  norm = network.tensors["BatchNorm_0/scale"]
  slope = np.asarray(net.variables["params"]["BatchNorm_0"]["scale"])
  np.testing.assert_array_equal(norm.data.reshape(-1), 127 * np.sign(slope))
  np.testing.assert_allclose(norm.scale * norm.data.reshape(-1), slope, rtol=2e-7)  # no error but of float32
  assert slope[2] == 0 and not network.tensors["BatchNorm_0/scale:out"].data


def test_a_rule_leaves_a_norm_in_float():
  net, x = preactivation()
  network, simulated = calibrated(net.infer, net.variables, x, {"BatchNorm_0/*": "float", "*": "w8a8"})
  made = {layer.name: network.tensors[layer.output].dtype for layer in network.layers}
  assert (made["BatchNorm_0/scale"], made["BatchNorm_2/scale"]) == ("float32", "int8")
  found = deploy.parity(network, litert().open(litert().write(network)), x, simulated)
  assert found["simulation/runtime"].count <= 0.01 * found["simulation/runtime"].total


def test_each_code_by_each_channel_is_that_of_the_reference():
  rng = np.random.default_rng(0)
  x = np.repeat(np.arange(-128, 128, dtype=np.int8).reshape(1, 16, 16, 1), 12, -1)
  scale = np.float32(rng.uniform(0.001, 0.05, 12))
  data = (np.sign(rng.normal(size=(1, 1, 1, 12))) * 127).astype(np.int8)
  data[..., 3] = 0
  offset = rng.integers(-9000, 9000, 12).astype(np.int32)
  shape = (None, 16, 16, 12)
  source = ir.Tensor("x", shape, "int8", ir.grid(0.07, 11))
  kernel = ir.Tensor("k", data.shape, "int8", ir.grid(scale, narrow=True, axis=3), data)
  bias = ir.Tensor("b", (12,), "int32", ir.bias_grid(source, kernel), offset)
  made = ir.Tensor("y", shape, "int8", ir.grid(0.21, -31))
  layer = ir.Conv2D("n", ("x",), "y", "k", "b", groups=12)
  network = ir.check(
    ir.Network((layer,), {one.name: one for one in (source, kernel, bias, made)}, {"x": "x"}, {"y": "y"})
  )
  total = (x.astype(np.float64) - 11) * data + offset
  exact = np.clip(total * 0.07 * scale / 0.21 - 31, -128, 127)
  files = [(litert(), "float32"), (litert(kernels="reference"), "litert"), (deploy.onnx(), "onnxruntime")]
  for one, mode in files:
    expected = reference.run(network, x, mode)
    np.testing.assert_array_equal(one.open(one.write(network)).batches(x), expected, mode)
    assert np.abs(expected - exact).max() <= 0.51


def test_a_trained_norm_has_gradients():
  net, x = preactivation()
  model = quantize(net.infer, "w8a8 learned")
  qparams, state = model.calibrate(net.variables, [x])

  @jax.jit
  def slopes(variables):
    return jax.grad(lambda v: jnp.sum(model.apply(qparams, state, v, x[:4])[0] ** 2))(variables)

  found = slopes(net.variables)["params"]["BatchNorm_2"]
  assert all(bool(jnp.isfinite(leaf).all()) and bool(jnp.any(leaf != 0)) for leaf in found.values())
