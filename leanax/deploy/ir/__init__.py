"""The typed layer IR: a compressed model for writers, the reference interpreter and readers.

About a dozen layers, each plain data. Images are NHWC, convolution kernels HWIO and dense kernels (in, out), as in
JAX; a writer transposes them as its format wishes. The batch is the first axis of every activation, written None and
taken as 1 in a file.

An integer tensor holds codes q of the values scale * (q - zero_point). Weights are symmetric (zero point 0) with a
scale per output channel; activations are affine with one scale; a bias is int32 at input scale times weight scale
(arXiv:1712.05877, section 2).
"""

from leanax.deploy.ir.checks import check
from leanax.deploy.ir.layers import (
  Add,
  AvgPool,
  Conv2D,
  Dense,
  Dequantize,
  Layer,
  MaxPool,
  Mean,
  Padding,
  Pair,
  Quantize,
  Relu,
  Reshape,
  same_padding,
  window_out,
)
from leanax.deploy.ir.network import Network, float_ends
from leanax.deploy.ir.tensor import (
  QMAX,
  QMIN,
  Tensor,
  bias_grid,
  dequantize,
  describe,
  grid,
  quantize,
  same_grid,
  values,
)

__all__ = [
  "QMAX",
  "QMIN",
  "Add",
  "AvgPool",
  "Conv2D",
  "Dense",
  "Dequantize",
  "Layer",
  "MaxPool",
  "Mean",
  "Network",
  "Padding",
  "Pair",
  "Quantize",
  "Relu",
  "Reshape",
  "Tensor",
  "bias_grid",
  "check",
  "dequantize",
  "describe",
  "float_ends",
  "grid",
  "quantize",
  "same_grid",
  "same_padding",
  "values",
  "window_out",
]
