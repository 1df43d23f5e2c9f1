"""Layers that move numbers without changing them, in numpy."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.reference.context import Context


def _reshape(layer: ir.Reshape, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  return inputs[0].reshape(-1, *context.tensors[layer.output].shape[1:])


def _transpose(layer: ir.Transpose, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  del context
  return np.ascontiguousarray(inputs[0].transpose(layer.permutation))


TABLE = {ir.Reshape: _reshape, ir.Transpose: _transpose}
