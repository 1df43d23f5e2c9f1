"""Networks of the benchmarks of files, with random weights that nothing is compiled for."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from leanax import graph
from leanax.core.trees import path_name
from leanax.engine import models
from leanax.zoo.convnet import ConvNet
from leanax.zoo.lenet import LeNet5, LeNet300
from leanax.zoo.mlp import MLP
from leanax.zoo.resnet import ResNet


class Block(nn.Module):
  """The basic block of He et al. (arXiv:1512.03385) with explicit padding, as in torchvision."""

  width: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    def conv(x: jax.Array, size: int, stride: int) -> jax.Array:
      y = nn.Conv(self.width, (size, size), (stride, stride), padding=size // 2, use_bias=False)(x)
      return nn.BatchNorm(use_running_average=True)(y)

    y = conv(nn.relu(conv(x, 3, self.stride)), 3, 1)
    return nn.relu(y + (x if x.shape == y.shape else conv(x, 1, self.stride)))


class ResNet18(nn.Module):
  """torchvision's ResNet-18, (N, 224, 224, 3) to (N, 1000): a 7x7 convolution and a max-pool in front of the blocks."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    del train  # it is only exported
    x = nn.Conv(64, (7, 7), (2, 2), padding=3, use_bias=False)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for stage, width in enumerate((64, 128, 256, 512)):
      for index in range(2):
        x = Block(width, 2 if stage and not index else 1)(x)
    return nn.Dense(1000)(x.mean((1, 2)))


class Case(NamedTuple):
  """A module and the shape of its input without the batch."""

  module: nn.Module
  shape: tuple[int, ...]


CASES = {
  "LeNet-300-100": Case(LeNet300(), (28, 28, 1)),
  "LeNet-5": Case(LeNet5(), (28, 28, 1)),
  "ConvNet 32-64": Case(ConvNet(), (28, 28, 1)),
  "MLP 784-1200-1200-10": Case(MLP((1200, 1200)), (28, 28, 1)),
  "ResNet-20, 32x32": Case(ResNet((3, 3, 3)), (32, 32, 3)),
  "ResNet-18, 32x32": Case(ResNet((2, 2, 2, 2), (64, 128, 256, 512)), (32, 32, 3)),
  "ResNet-18, 224x224": Case(ResNet18(), (224, 224, 3)),
}


def net(case: Case) -> graph.Net:
  """Returns a network with random weights: kernels as He et al. (arXiv:1502.01852), biases and means near 0."""
  at_random = np.random.default_rng(0)
  x = jnp.zeros((1, *case.shape))

  def drawn(path: Any, leaf: Any) -> np.ndarray:
    name = path_name(path).rpartition("/")[2]
    draw = at_random.standard_normal(leaf.shape, np.float32)
    if name == "kernel":
      return draw * np.float32(math.sqrt(2 / math.prod(leaf.shape[:-1])))
    return draw * np.float32(0.1) + np.float32(name in ("scale", "var"))

  shapes = jax.eval_shape(case.module.init, jax.random.key(0), x)
  return models.net(case.module, jax.tree_util.tree_map_with_path(drawn, shapes), x)
