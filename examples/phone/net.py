"""The model of this example: a small image classifier of depthwise convolutions, in plain Flax.

It knows nothing of leanax: config.py names it by its import path, as you would name yours.
"""

from functools import partial

import flax.linen as nn
import jax

BLOCKS = ((2, 1), (4, 2), (4, 1))  # the channels over the width, and the stride, of each pair of convolutions


class PhoneNet(nn.Module):
  """A convolution of stride 2, then pairs of a depthwise 3x3 and a 1x1 convolution, each with a batch norm and relu6.

  Attributes:
    width: channels of the first convolution.
    classes: number of logits.
  """

  width: int = 16
  classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps (batch, height, width, channels) images to (batch, classes) logits."""
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    conv = partial(nn.Conv, use_bias=False)
    x = nn.relu6(norm()(conv(self.width, (3, 3), 2)(x)))
    for factor, stride in BLOCKS:
      channels = x.shape[-1]
      x = nn.relu6(norm()(conv(channels, (3, 3), stride, feature_group_count=channels)(x)))
      x = nn.relu6(norm()(conv(factor * self.width, (1, 1))(x)))
    return nn.Dense(self.classes)(x.mean((1, 2)))
