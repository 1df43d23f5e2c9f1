"""Weights as a file holds them: their type, two of 4 bits in a byte, and what stands between them and an operator.

Measured in ai-edge-litert 2.3.0. FULLY_CONNECTED reads int4 weights beside int8 activations, with the same codes in
XNNPACK and in the plain kernels, where its inputs are even in number. CONV_2D reads them too, but outside of XNNPACK:
2.6 to 3.8 times slower, and with other roundings; DEPTHWISE_CONV_2D does not in the plain kernels, and no convolution
reads 2 bits. So convolutions of int8 activations have int8 weights whatever their grids, and those that are products at
each pixel are dense layers.

A float operator reads its weights from a DEQUANTIZE behind float16, int8 or int4 constants, which is computed once; of
float16 and int8 XNNPACK keeps the values itself, and is as fast as with float32. Where the runtime is to round what it
multiplies, FULLY_CONNECTED and CONV_2D read the codes directly; XNNPACK has no such kernel for depthwise and grouped
convolutions, so these read values.
"""

import math
from collections.abc import Sequence

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.formats.litert.emit.operators import FEW, Plan, Written, packs
from leanax.deploy.formats.litert.sparse import rows

WEIGHTS = ("", "float16", "int8", "dynamic_int8")
EXTRA = 128  # bytes that a DEQUANTIZE and its tensor take in a file
_PLACES = {"FULLY_CONNECTED": (1, 0), "CONV_2D": (1, 0), "DEPTHWISE_CONV_2D": (1, 3), "GATHER": (0, 0)}
"""Operators that have weights: the place of these among the inputs, and their axis of output channels (or of rows)."""


def stored(plan: Plan, weights: str = "", sparse: float | None = None) -> Plan:
  """Returns the plan with weights as the file holds them; `weights` and `sparse` as of `litert`."""
  operators: list[Written] = []
  for op in plan.operators:
    name = op.inputs[_PLACES[op.code][0]] if op.code in _PLACES else None
    if name is None or plan.tensors[name].data is None:
      operators.append(op)
    elif sparse is not None and _is_sparse(op, plan.tensors[name], sparse):
      plan.rows[name] = rows(ir.values(plan.tensors[name]))
      operators.append(op._replace(version=8))
    elif plan.tensors[op.output].dtype == "int8":
      operators.append(_of_integers(plan, op, plan.tensors[name]))
    else:
      operators += _of_floats(plan, op, plan.tensors[name], weights)
  return plan._replace(operators=operators)


def _is_sparse(op: Written, held: ir.Tensor, share: float) -> bool:
  """Returns whether a dense layer's float weights have so many zeros, and are smaller without them."""
  if op.code != "FULLY_CONNECTED" or held.dtype != "float32":
    return False
  data = ir.values(held)
  entries = np.count_nonzero(data)
  return bool(0 < entries <= (1 - share) * data.size) and rows(data).bytes + EXTRA < data.nbytes


def _of_integers(plan: Plan, op: Written, held: ir.Tensor) -> Written:
  """Returns an operator on codes; the weights of a dense one are packed where they have few bits."""
  if op.code != "FULLY_CONNECTED" or not packs(held, held.shape[1]):
    return op
  plan.tensors[held.name] = held._replace(dtype="int4")
  return op._replace(version=10)


def _of_floats(plan: Plan, op: Written, held: ir.Tensor, weights: str) -> list[Written]:
  """Returns a float operator, behind a DEQUANTIZE where it reads values of weights that are held in another type."""
  place, axis = _PLACES[op.code]
  if held.dtype == "float32" and weights:
    rounded = half(held) if weights == "float16" else on_int8(held, axis)
    held = rounded if _bytes(rounded) + EXTRA < _bytes(held) else held
  if held.grid is None and held.dtype != "float16":
    return [op]
  few = held.grid is not None and held.grid.bits <= FEW
  source = plan.tensors[op.inputs[0] or ""]
  dense, whole = op.code == "FULLY_CONNECTED", op.code == "CONV_2D" and held.shape[3] == source.shape[-1]
  if weights == "dynamic_int8" and (dense or whole):
    plan.tensors[held.name] = held._replace(dtype="int4") if dense and packs(held, held.shape[1]) else held
    version = {True: (12, 9), False: (5, 2)}[dense][held.axis is None]
    return [op._replace(fields={**op.fields, **({"AsymmetricQuantizeInputs": True} if dense else {})}, version=version)]
  plan.tensors[held.name] = held = held._replace(dtype="int4") if few else held
  values = ir.Tensor(f"{held.name}:values", held.shape)
  version = {"int4": 6, "float16": 3}.get(held.dtype, 2 if held.grid is None or held.axis is None else 5)
  before = [] if values.name in plan.tensors else [Written("DEQUANTIZE", (held.name,), values.name, version=version)]
  plan.tensors[values.name] = values
  inputs = tuple(values.name if position == place else name for position, name in enumerate(op.inputs))
  return [*before, op._replace(inputs=inputs)]


def _bytes(weights: ir.Tensor) -> int:
  """Returns the bytes of weights, and of a scale and a zero point (int64) for each channel."""
  return ir.values(weights).nbytes + (0 if weights.grid is None else 12 * weights.scale.size)


def half(weights: ir.Tensor) -> ir.Tensor:
  """Returns weights rounded to float16.

  Raises:
    UserError: one is beyond its largest number.
  """
  largest = np.abs(ir.values(weights)).max(initial=0)
  if largest > np.finfo(np.float16).max:
    raise UserError(f"the weights {weights.name!r} hold {largest:.3g}; float16 has numbers up to 65504")
  return weights._replace(dtype="float16", data=ir.values(weights).astype(np.float16))


def on_int8(weights: ir.Tensor, axis: int) -> ir.Tensor:
  """Returns weights rounded to symmetric 8-bit codes, with a scale for each entry along an axis."""
  data = ir.values(weights)
  others = tuple(one for one in range(data.ndim) if one != axis)
  largest = np.abs(data).max(others, initial=0)
  scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
  codes = np.rint(data * (np.float32(1) / np.expand_dims(scale, others)))
  grid = ir.grid(scale, narrow=True, axis=axis)
  return weights._replace(dtype="int8", grid=grid, data=np.clip(codes, -127, 127).astype(np.int8))


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
