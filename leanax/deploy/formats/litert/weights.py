"""Weights as a file holds them: their type, two of 4 bits in a byte, and what stands between them and an operator.

Measured in ai-edge-litert 2.3.0. FULLY_CONNECTED reads int4 weights beside int8 activations, with the same codes in
XNNPACK and in the plain kernels, where its inputs are even in number. CONV_2D reads them too, but outside of XNNPACK:
2.6 to 3.8 times slower, and with other roundings; DEPTHWISE_CONV_2D does not in the plain kernels, and no convolution
reads 2 bits. So convolutions of int8 activations have int8 weights whatever their grids, and those that are products at
each pixel are dense layers.
"""

import math
from collections.abc import Sequence

import numpy as np

from leanax.deploy import ir
from leanax.deploy.formats.litert.emit.operators import Plan, Written, packs

WEIGHTS = {"FULLY_CONNECTED": 1}  # operators that have weights, and the place of these among the inputs


def stored(plan: Plan) -> Plan:
  """Returns the plan with weights as the file holds them."""
  for place, op in enumerate(plan.operators):
    if op.code in WEIGHTS:
      plan.operators[place] = _packed(plan, op)
  return plan


def _packed(plan: Plan, op: Written) -> Written:
  """Returns an operator whose weights are int4 where they have few bits."""
  weights = plan.tensors[op.inputs[WEIGHTS[op.code]] or ""]
  if not packs(weights, weights.shape[1]):
    return op
  plan.tensors[weights.name] = weights._replace(dtype="int4")
  return op._replace(version=10)


def content(tensor: ir.Tensor) -> bytes:
  """Returns the bytes of a constant; of int4 codes the first one is in the lower half of a byte."""
  data = np.ascontiguousarray(ir.values(tensor))
  if tensor.dtype != "int4":
    return np.ascontiguousarray(data, tensor.dtype).tobytes()
  codes = np.append(data.ravel(), np.zeros(data.size % 2, np.int8)).astype(np.uint8) & 15
  return (codes[::2] | codes[1::2] << 4).tobytes()


def unpacked(held: bytes, dtype: str, shape: Sequence[int]) -> np.ndarray:
  """Returns a constant from the bytes of a file, int4 codes as int8."""
  if dtype != "int4":
    return np.frombuffer(held, dtype).reshape(shape)
  pairs = np.frombuffer(held, np.int8)
  codes = np.stack([pairs << 4 >> 4, pairs >> 4], -1)  # the sign of each half is kept
  return codes.ravel()[: math.prod(shape)].reshape(shape)
