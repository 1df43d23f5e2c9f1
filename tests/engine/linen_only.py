"""A linen model in a module of its own."""

from flax import linen as nn


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(2)(x)
