"""Small residual nets with batch norm, after He et al., "Deep Residual Learning" (arXiv:1512.03385), section 4.2."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class Block(nn.Module):
  """Two 3x3 convolutions with batch norm, and a shortcut: a strided 1x1 convolution where shapes differ (option B)."""

  width: int
  stride: int
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps (batch, height, width, channels) to (batch, height / stride, width / stride, self.width)."""

    def norm(y: jax.Array) -> jax.Array:
      return nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name if train else None)(y)

    strides = (self.stride, self.stride)
    y = nn.relu(norm(nn.Conv(self.width, (3, 3), strides, use_bias=False)(x)))
    y = norm(nn.Conv(self.width, (3, 3), use_bias=False)(y))
    if x.shape != y.shape:
      x = norm(nn.Conv(self.width, (1, 1), strides, use_bias=False)(x))
    return nn.relu(x + y)


class ResNet(nn.Module):
  """A stem, stages of residual blocks that halve the resolution from the second on, a global mean and a dense head.

  Attributes:
    blocks: residual blocks per stage; (3, 3, 3) with widths (16, 32, 64) is ResNet-20.
    widths: channels per stage.
    classes: number of logits.
    axis_name: device axis over which batch statistics are taken in training; None for those of each device.
  """

  blocks: Sequence[int] = (1, 1, 1)
  widths: Sequence[int] = (16, 32, 64)
  classes: int = 10
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps (batch, height, width, channels) images to (batch, classes) logits."""
    x = nn.Conv(self.widths[0], (3, 3), use_bias=False)(x)
    axis = self.axis_name if train else None
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=axis)(x))
    for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
      for index in range(count):
        x = Block(width, 2 if stage > 0 and index == 0 else 1, self.axis_name)(x, train)
    return nn.Dense(self.classes)(x.mean((1, 2)))
