"""Plain convolutional nets: 3x3 convolutions with ReLU, pooled by two after each, then dense layers."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class ConvNet(nn.Module):
  """3x3 convolutions with ReLU, the first `pool` followed by 2x2 max-pooling; then dense layers.

  Attributes:
    widths: channels of the convolutions.
    dense: units of the hidden dense layers.
    pool: number of convolutions, from the first, that are followed by pooling.
    classes: number of logits.
  """

  widths: Sequence[int] = (32, 64)
  dense: Sequence[int] = (128,)
  pool: int = 2
  classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, height, width, channels) images to (batch, classes) logits."""
    for index, width in enumerate(self.widths):
      x = nn.relu(nn.Conv(width, (3, 3))(x))
      if index < self.pool:
        x = nn.max_pool(x, (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    for width in self.dense:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.classes)(x)
