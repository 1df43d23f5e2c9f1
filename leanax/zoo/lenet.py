"""The two networks of LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998.

As is usual in the pruning literature since Han et al. 2015 (arXiv:1506.02626) they have ReLU units, and LeNet-5 is the
variant with 20 and 50 filters and 500 hidden units ("LeNet-5-Caffe", 431,080 parameters on 28x28 images).
"""

import flax.linen as nn
import jax


class LeNet300(nn.Module):
  """LeNet-300-100: two hidden dense layers (266,610 parameters on 28x28 images)."""

  classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, ...) inputs, flattened, to (batch, classes) logits."""
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(300)(x))
    x = nn.relu(nn.Dense(100)(x))
    return nn.Dense(self.classes)(x)


class LeNet5(nn.Module):
  """LeNet-5: two 5x5 convolutions without padding, each max-pooled by two, and two dense layers."""

  classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, height, width, channels) images to (batch, classes) logits."""
    for width in (20, 50):
      x = nn.max_pool(nn.relu(nn.Conv(width, (5, 5), padding="VALID")(x)), (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(500)(x))
    return nn.Dense(self.classes)(x)
