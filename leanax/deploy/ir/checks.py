"""The soundness of a network: its names, the order of its layers, its types and grids."""

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy.ir.layers import Dequantize, Layer, MaxPool, Quantize, Reshape
from leanax.deploy.ir.network import Network
from leanax.deploy.ir.operators import (
  ArgMax,
  ArgMin,
  Binary,
  Broadcast,
  Cast,
  Compare,
  Concat,
  Gather,
  Pad,
  Reduce,
  Resize,
  Select,
  Slice,
  Transpose,
)
from leanax.deploy.ir.tensor import QMAX, Tensor, same_grid

CHANGES_TYPE = Quantize | Dequantize | Cast | Compare | Select | Gather | ArgMax | ArgMin
MOVES = MaxPool | Reshape | Transpose | Concat | Slice | Pad | Broadcast | Resize | Gather  # they keep codes
CHOICES = {Resize: ("nearest",), Reduce: ("max", "min"), Binary: ("max", "min")}  # the ones that move numbers or choose


def moves(layer: Layer) -> bool:
  """Returns whether a layer only moves or chooses numbers, so that codes on one grid stay what they are."""
  choices = next((found for kind, found in CHOICES.items() if isinstance(layer, kind)), None)
  if choices is None:
    return isinstance(layer, MOVES | Select)
  return getattr(layer, "method", getattr(layer, "operation", "")) in choices


def check(network: Network) -> Network:
  """Returns the network itself, if its names, order and grids are sound.

  Raises:
    UserError: a tensor is missing or read too early, made twice, or stands on a grid that its layer cannot have.
  """
  ready = set(network.inputs.values()) | {name for name, tensor in network.tensors.items() if tensor.data is not None}
  for layer in network.layers:
    for name in (*layer.inputs, *layer.constants()):
      if name not in ready:
        raise UserError(f"layer {layer.name!r} reads {name!r}, which no layer before it makes")
    if layer.output in ready or layer.output not in network.tensors:
      reason = "was made before" if layer.output in ready else "is no tensor"
      raise UserError(f"layer {layer.name!r} makes {layer.output!r}, which {reason}")
    _check_grids(layer, network.tensors)
    ready.add(layer.output)
  for name in network.outputs.values():
    if name not in ready:
      raise UserError(f"the network's output {name!r} is made by no layer")
  return network


def _check_grids(layer: Layer, tensors: dict[str, Tensor]) -> None:
  made, read = tensors[layer.output], [tensors[name] for name in layer.inputs]
  mixed = any(tensor.dtype != made.dtype for tensor in read)
  if mixed and not isinstance(layer, CHANGES_TYPE):
    raise UserError(
      f"layer {layer.name!r} reads {read[0].dtype} and makes {made.dtype}; only quantize layers may change the type"
    )
  moved = [tensor for tensor in read if tensor.dtype == made.dtype]  # not indices
  if isinstance(layer, MOVES) and not all(same_grid(made.grid, tensor.grid) for tensor in moved):
    raise UserError(f"layer {layer.name!r} must have one grid for its input and its output")
  for name in layer.constants():
    constant = tensors[name]
    if constant.group is not None and made.dtype == "int8":
      raise UserError(f"layer {layer.name!r} is of integers; only a float one can have a kernel in groups, as {name!r}")
    zeros = 0 if constant.grid is None else np.asarray(constant.grid.zero_point)
    if np.any(zeros):
      raise UserError(f"constant {name!r} has zero point {zeros}; weights must be symmetric, with zero point 0")
    if constant.dtype == "int8" and constant.data is not None and constant.data.min(initial=0) < -QMAX:
      raise UserError(f"weights {name!r} hold the code -128; the runtime wants the narrow range -127..127")
