"""The cost of each operation: multiply-accumulates, bytes, bit-operations."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from leanax.graph.ops import Op

Row = dict[str, Any]


def row(op: Op, bits: tuple[int, int] | None = None) -> Row:
  """Returns one operation's costs as plain data.

  Args:
    op: an operation.
    bits: widths of its weights and of its activations; by default those of the arrays' types.

  Returns:
    A dict: name, kind, kernel (leaf) and kernel_shape, inputs (names of the activations read), output_shape, macs,
    weight_bytes (of the leaves it reads), activation_bytes (of what it writes), bit_operations (multiply-accumulates
    times both widths), repeats (runs of a scan's body, counted in every number), frozen (why it cannot be replaced).
    Numbers are for the traced batch.
  """
  kernel = None if op.kernel_index is None else op.inputs[op.kernel_index]
  data = next((o for o in op.inputs if o.tensor is not None), None)
  weight_bits, activation_bits = bits or (_bits(kernel or data), _bits(data))
  weights = sum(math.prod(o.shape) for o in op.inputs if o.leaf is not None and op.kind != "output") * op.repeats
  written = 0 if op.kind == "output" else sum(math.prod(o.shape) for o in op.outputs) * op.repeats
  return {
    "name": op.name,
    "kind": op.kind,
    "kernel": kernel.leaf if kernel else None,
    "kernel_shape": kernel.shape if kernel else None,
    "inputs": [o.tensor for o in op.inputs if o.tensor is not None],
    "output_shape": op.outputs[0].shape if op.outputs else (),
    "macs": op.macs,
    "weight_bytes": -(-weights * weight_bits // 8),
    "activation_bytes": -(-written * activation_bits // 8),
    "bit_operations": op.macs * weight_bits * activation_bits,
    "repeats": op.repeats,
    "frozen": op.frozen,
  }


def table(ops: Iterable[Op], bits: Mapping[str, tuple[int, int]] | None = None) -> list[Row]:
  """Returns a row for each operation, in order; `bits` gives the widths of some by name."""
  return [row(op, (bits or {}).get(op.name)) for op in ops]


def _bits(operand: Any) -> int:
  return 32 if operand is None or operand.dtype is None else 8 * np.dtype(operand.dtype).itemsize
