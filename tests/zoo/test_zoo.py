"""The parameter counts that the literature gives, and the three spellings of one network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax.zoo.convnet import ConvNet
from leanax.zoo.efficientnet import SIZES, EfficientNetLite, scaled
from leanax.zoo.kernels import conv_kernel
from leanax.zoo.lenet import LeNet5, LeNet300
from leanax.zoo.mlp import MLP, plain_mlp
from leanax.zoo.resnet import ResNet
from leanax.zoo.vit import ViT
from tests.numbers import normal


def parameters(variables):
  return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(("model", "shape", "count"), [
  (LeNet300(), (28, 28, 1), 266_610),
  (LeNet5(), (28, 28, 1), 431_080),
  (ResNet((3, 3, 3)), (32, 32, 3), 272_474),  # ResNet-20 with two projections (269,722 without)
  (ConvNet((4, 8), (16,)), (8, 8, 1), 40 + 296 + 32 * 16 + 16 + 170),
])  # fmt: skip
def test_parameter_counts(model, shape, count):
  variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape), jnp.float32))
  assert parameters(variables) == count


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("size", "millions"), [*zip(SIZES, (4.7, 5.4, 6.1, 8.2, 13.0), strict=True)])
def test_efficientnet_lite_has_the_published_parameters(size, millions):
  """In millions, of the table in tensorflow/tpu's README of the Lite variant."""
  width, depth, pixels, _ = size
  image = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
  variables = jax.eval_shape(EfficientNetLite(width=width, depth=depth).init, jax.random.key(0), image)
  assert round(parameters(variables) / 1e6, 1) == millions
  assert width != 1.0 or (4_652_008 if depth == 1.0 else 5_416_680) == parameters(variables)


def test_channels_are_rounded_to_eights_by_at_most_a_tenth():
  assert [scaled(channels, 1.1) for channels in (16, 24, 40, 80, 112, 192, 320)] == [16, 24, 48, 88, 120, 208, 352]
  assert scaled(4, 1.0) == 8


def test_vit_has_the_parameters_of_its_parts():
  """Patches, positions, per block two norms, four projections and an MLP of four times the width, norm and head."""
  d, depth, classes = 64, 4, 10
  block = 2 * 2 * d + 4 * (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d)
  wanted = (4 * 4 * 3 * d + d) + 8 * 8 * d + depth * block + 2 * d + (d * classes + classes)
  image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  assert parameters(jax.eval_shape(ViT().init, jax.random.key(0), image)) == wanted
  assert jax.eval_shape(lambda x: ViT().init_with_output(jax.random.key(0), x)[0], image).shape == (2, 10)


def test_linen_nnx_and_plain_mlp_are_the_same_network():
  from flax import nnx

  from leanax.zoo.mlp_nnx import MLP as NnxMLP

  x = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
  linen = MLP((7, 5), 3)
  variables = linen.init(jax.random.key(0), x)
  layers = [variables["params"][f"Dense_{i}"] for i in range(3)]
  _, apply = plain_mlp((7, 5), 3)
  np.testing.assert_array_equal(linen.apply(variables, x), apply({"params": layers}, x))
  other = NnxMLP(16, (7, 5), 3, rngs=nnx.Rngs(0))
  for layer, values in zip(other.layers, layers, strict=True):
    layer.kernel[...] = values["kernel"]
    layer.bias[...] = values["bias"]
  np.testing.assert_allclose(linen.apply(variables, x), other(x), rtol=1e-6, atol=1e-6)


def test_resnet_moves_its_batch_statistics_in_training_only():
  model = ResNet((1, 1), (4, 8))
  x = normal(0, (4, 8, 8, 1))
  variables = jax.jit(model.init)(jax.random.key(1), x)
  assert jax.eval_shape(model.apply, variables, x).shape == (4, 10)
  _, moved = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, x)
  before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(moved["batch_stats"])
  assert all((a != b).any() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("shape", [(3, 3, 2, 4), (1, 1, 5, 3), (3, 3, 1, 6)])
def test_kernels_are_those_of_flax(shape):
  """Bit for bit, compiled as stages compile them."""
  want = jax.jit(lambda key: nn.initializers.lecun_normal()(key, shape, jnp.float32))(jax.random.key(3))
  np.testing.assert_array_equal(jax.jit(lambda key: conv_kernel(key, shape, jnp.float32))(jax.random.key(3)), want)
