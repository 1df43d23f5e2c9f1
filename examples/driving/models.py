"""A large and a small network that give logits of classes for every pixel; both are fully convolutional.

Both halve the image several times, add the maps of each size on the way back, and decide on blocks of 2x2 pixels.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax


def conv(
  x: jax.Array, width: int, train: bool, size: int = 3, stride: int = 1, depthwise: bool = False, act: bool = True
) -> jax.Array:
  """Returns a convolution with batch norm and perhaps a ReLU, inside of a module's compact method."""
  groups = x.shape[-1] if depthwise else 1
  x = nn.Conv(width, (size, size), (stride, stride), use_bias=False, feature_group_count=groups)(x)
  x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
  return nn.relu(x) if act else x


def twice(x: jax.Array) -> jax.Array:
  """Returns maps (batch, height, width, channels) at twice their height and width, each pixel four times."""
  batch, height, width, channels = x.shape
  return jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "nearest")


class Residual(nn.Module):
  """Two 3x3 convolutions and a shortcut (arXiv:1512.03385)."""

  width: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = conv(conv(x, self.width, train, stride=self.stride), self.width, train, act=False)
    return nn.relu(y + (x if x.shape == y.shape else conv(x, self.width, train, 1, self.stride, act=False)))


class Inverted(nn.Module):
  """An inverted residual with a linear bottleneck (arXiv:1801.04381): widened, depthwise 3x3, narrowed."""

  width: int
  stride: int = 1
  expand: int = 3

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = conv(x, x.shape[-1] * self.expand, train, 1)
    y = conv(y, y.shape[-1], train, stride=self.stride, depthwise=True)
    y = conv(y, self.width, train, 1, act=False)
    return x + y if x.shape == y.shape else y


class Net(nn.Module):
  """A stem at half of the size, levels that halve it again, and the way back.

  Attributes:
    small: inverted residuals, and depthwise convolutions on the way back; residual blocks of full ones otherwise.
    stem: channels at half of the size.
    widths: channels at 1/4, 1/8 and so on; the image's sides are multiples of 2 to the power of their number plus 1.
    blocks: blocks at each of these.
    decoder: channels on the way back.
    classes: number of logits of a pixel.
  """

  small: bool
  stem: int
  widths: Sequence[int]
  blocks: Sequence[int]
  decoder: int
  classes: int = 5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps (batch, height, width, channels) images to (batch, height, width, classes) logits."""
    block = Inverted if self.small else Residual
    x = conv(x, self.stem, train, stride=2)
    maps = [x]
    for width, count in zip(self.widths, self.blocks, strict=True):
      for index in range(count):
        x = block(width, 1 if index else 2)(x, train)
      maps.append(x)
    x = conv(maps.pop(), self.decoder, train, 1)
    while len(maps) > 1:
      x = nn.relu(twice(x) + conv(maps.pop(), self.decoder, train, 1, act=False))
      x = conv(x, self.decoder, train, depthwise=self.small)
    x = nn.relu(twice(conv(x, self.stem, train, 1)) + conv(maps.pop(), self.stem, train, 1, act=False))
    x = conv(x, self.stem, train, depthwise=self.small)
    return twice(nn.Conv(self.classes, (1, 1))(x))
