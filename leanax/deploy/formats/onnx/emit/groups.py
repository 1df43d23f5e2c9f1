"""Kernels with a scale for each group of inputs, as the values of their codes.

Sources: DequantizeLinear of the ONNX operator specification (opset 21), and MatMulNBits of onnxruntime's own operators.
"""

from typing import Any

import numpy as np

from leanax.deploy import ir
from leanax.deploy.formats.onnx.emit.elementwise import TYPES
from leanax.deploy.formats.onnx.emit.nodes import INT4, Plan

GROUPS = ("values", "blocked", "matmul_nbits")  # forms of kernels in groups
NBITS = (16, 2**15)  # the least and the largest group that MatMulNBits takes, a power of two


def is_int4(kernel: ir.Tensor) -> bool:
  """Returns whether a kernel is stored as int4."""
  return kernel.grid is not None and kernel.grid.bits <= 4


def of_groups(plan: Plan, kernel: ir.Tensor, data: np.ndarray, scale: np.ndarray) -> str:
  """Returns the values of a kernel in groups: of codes and scales, one for each block, with their axes in one order.

  As "values" each block's codes are multiplied by its scale, which onnxruntime does once, when it opens the file. As
  "blocked" they are those of a DequantizeLinear, where the blocks are rows: groups of input channels are so at all
  positions of a convolution's kernel together.
  """
  name, dtype = kernel.name, INT4 if is_int4(kernel) else None
  inside = int(np.prod(data.shape[1:]))
  if plan.groups == "blocked" and scale.size == scale.shape[0] * scale.shape[1] and scale.shape[0] in (1, len(data)):
    rows = np.broadcast_to(scale.reshape(scale.shape[:2]), (len(data), scale.shape[1]))
    held = plan.constant(data.reshape(len(data), inside), dtype, name)
    fields = {"axis": 1, "block_size": inside // rows.shape[1]}
    scales = plan.constant(rows, np.float32, f"{name}:scale")
    real = plan.node("DequantizeLinear", held, scales, output=f"{held}:rows:{scales}", **fields)
    if data.ndim == 2:
      return real
    return plan.node("Reshape", real, plan.constant(data.shape, np.int64), output=f"{held}:real:{scales}")
  blocks = [part for length, count in zip(data.shape, scale.shape, strict=True) for part in (count, length // count)]
  held = plan.constant(data.reshape(blocks), dtype, name)
  scales = plan.constant(scale.reshape([part for count in scale.shape for part in (count, 1)]), np.float32)
  floats = plan.node("Cast", held, output=f"{held}:float", to=TYPES["float32"])
  product = plan.node("Mul", floats, scales, output=f"{held}:blocks:{scales}")
  return plan.node("Reshape", product, plan.constant(data.shape, np.int64), output=f"{held}:real:{scales}")


def nbits(plan: Plan, kernel: ir.Tensor) -> tuple[tuple[str, str], dict[str, Any]] | None:
  """Returns the codes, the scales and the attributes of a dense layer's MatMulNBits with float32 sums.

  None where it is no such one: at 8 bits it takes longer than a product of floats, and it has groups of inputs alone.
  """
  group, (low, high) = kernel.group, NBITS
  if plan.groups != "matmul_nbits" or group is None or not is_int4(kernel):
    return None
  if not (low <= group <= high and group & (group - 1) == 0 and kernel.scale.shape[1] in (1, kernel.shape[1])):
    return None
  inside, outside = ir.values(kernel).shape
  codes = (ir.values(kernel).T + 8).astype(np.uint8).reshape(outside, inside // group, group)
  held = plan.constant(codes[..., ::2] | codes[..., 1::2] << 4, name=kernel.name)
  scale = np.broadcast_to(kernel.scale.T, (outside, inside // group))
  fields = {"K": inside, "N": outside, "bits": 4, "block_size": group, "accuracy_level": 1}
  return (held, plan.constant(scale, np.float32, f"{kernel.name}:scale")), fields
