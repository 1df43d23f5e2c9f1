"""A layer whose weights are tiny beside its biases, in the simulation, the integer reference and the runtime."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import deploy, graph
from leanax.deploy import ir, litert, reference
from quant.quantize import quantize


def conv():
  x = jax.random.normal(jax.random.key(0), (32, 8, 8, 3))
  kernel = 1e-7 * jax.random.normal(jax.random.key(1), (3, 3, 3, 2))
  return nn.Conv(2, (3, 3)).apply, {"params": {"kernel": kernel, "bias": jnp.array([5.0, -4.5])}}, x


def folded():
  """All the scales of a batch norm are small, as a strong penalty on them leaves them."""

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3), use_bias=False)(x))

  x = jax.random.normal(jax.random.key(0), (32, 8, 8, 3))
  variables = Net().init(jax.random.key(1), x)
  norm = {"scale": jnp.full(4, 1e-6), "bias": jnp.array([1.0, -2.0, 0.5, 0.0])}
  variables = {**variables, "params": {**variables["params"], "BatchNorm_0": norm}}
  net = graph.fold_batch_norms(graph.net(Net().apply, variables, x[:1]))
  fn, variables = net.infer, net.variables
  return fn, variables, x


@pytest.mark.parametrize("make", [pytest.param(conv, marks=pytest.mark.slow), folded])
def test_the_bias_reaches_the_file(make):
  fn, variables, x = make()
  model = quantize(fn, "w8a8")
  qparams, state = model.init(variables, x)
  _, state = model.observe(state, variables, x)
  qparams, state = model.freeze(qparams, state, variables)
  grids = model.grids(qparams, state, variables, x)
  network = deploy.lift(fn, variables, x, grids)
  exact = np.asarray(fn(variables, x), np.float64)
  last = network.tensors[network.output]
  simulated = np.asarray(model.apply(qparams, state, variables, x)[0])
  codes = reference.run(network, np.asarray(x), "litert")
  found = float(last.scale) * (codes.astype(np.float64) - last.zero_point)
  for numbers in (found, simulated):
    np.testing.assert_allclose(numbers, exact, atol=0.51 * float(last.scale))
  pairs = deploy.parity(network, litert().open(litert().write(network)), np.asarray(x), simulated)
  assert {pair: mismatch.count for pair, mismatch in pairs.items()} == dict.fromkeys(pairs, 0)
  assert all(isinstance(layer, ir.Conv2D) for layer in network.layers)
