"""The number contract where float products are rounded: what an accelerator does, by `tests.backends`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import deploy, graph
from leanax.deploy import litert
from leanax.zoo.lenet import LeNet5, LeNet300
from leanax.zoo.resnet import ResNet
from quant.carrier import CARRIERS
from quant.quantize import quantize
from tests.backends import BITS, rounded


def lenet300():
  return made(LeNet300(), (8, 8, 1))


def lenet5():
  return made(LeNet5(), (20, 20, 1))


def resnet():
  fn, variables, x = made(ResNet((1, 1), (8, 16)), (12, 12, 3))
  net = graph.fold_batch_norms(graph.net(fn, variables, x[:1]))
  fn, variables = net.infer, net.variables
  return fn, variables, x


def wide():
  """Sums of 784 and of 9 * 96 terms, longer than one float32 product of codes may be."""

  class Wide(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.Dense(96)(x.reshape(x.shape[0], -1)))
      x = jnp.broadcast_to(x[:, None, None], (x.shape[0], 4, 4, 96))
      x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
      return nn.Dense(10)(x.reshape(x.shape[0], -1))

  return made(Wide(), (28, 28, 1))


def made(module, shape):
  x = jax.random.normal(jax.random.key(0), (64, *shape))
  variables = module.init(jax.random.key(1), x[:1])
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  moved = [leaf + 0.02 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
  return module.apply, jax.tree.unflatten(tree, moved), x


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  "make", [lenet300, pytest.param(lenet5, marks=pytest.mark.slow), pytest.param(resnet, marks=pytest.mark.slow), wide]
)
def test_codes_do_not_depend_on_how_float_products_are_rounded(make):
  fn, variables, x = make()
  outs = {}
  for carrier in CARRIERS:
    model = quantize(fn, "w8a8", carrier=carrier)
    qparams, state = model.init(variables, x)

    def simulate(v, x, model=model, qparams=qparams, state=state):
      return model.apply(qparams, state, v, x)[0]

    for backend, bits in {"cpu": 24, **BITS}.items():
      outs[carrier, backend] = np.asarray(jax.jit(rounded(simulate, bits) if bits < 24 else simulate)(variables, x))
  first = outs["float32", "cpu"]
  for key, out in outs.items():
    np.testing.assert_array_equal(out, first, err_msg=str(key))
  if make is wide:  # a broadcast is no layer of a file
    return
  network = deploy.lift(fn, variables, x[:1], model.grids(qparams, state, variables, x[:1]))
  codes = deploy.parity(network, litert().open(litert().write(network)), np.asarray(x), first)
  assert codes["reference/runtime"].count == 0
  # A value within a rounding error of a tie may fall on either side of it, on the CPU as well.
  assert codes["simulation/reference"].count <= codes["simulation/reference"].total // 500


def test_the_rounding_of_an_accelerator_is_seen():
  """The float model itself differs there, so that the test above means something."""
  fn, variables, x = lenet300()
  plain = jax.jit(fn)(variables, x)
  for bits in BITS.values():
    assert np.abs(jax.jit(rounded(fn, bits))(variables, x) - plain).max() > 1e-4
