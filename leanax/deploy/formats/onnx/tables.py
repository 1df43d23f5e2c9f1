"""A look through an .onnx file before the runtime sees it: what it holds, and what would end the process there.

The runtime checks types, shapes and the graph itself and raises. It allocates whatever a file declares, reads other
files that one names as the place of its data, and divides by strides and dilations of 0.
"""

import json
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.description import Description
from leanax.deploy.formats.onnx.writer import DESCRIPTION, GRIDS, METADATA, package
from leanax.deploy.preprocessing import Preprocessing
from quant.grid import Grid

MOST = 2**27  # elements of all activations, and of one constant
SIZES = ("strides", "dilations", "kernel_shape", "group", "blocksize", "num_outputs")  # attributes of 1 and more
UNBOUNDED = ("Loop", "Scan", "If")  # how long they run, or what they hold, a look through a file does not show
TYPES = {"float32": ("float32",), "uint8": ("uint8", "int8"), "int8": ("int8",)}


class Held(NamedTuple):
  """What a file says of itself: its ends' grids by their names, preprocessing and description."""

  inputs: dict[str, Grid]
  outputs: dict[str, Grid]
  preprocessing: Preprocessing | None
  description: Description | None = None


def checked(content: bytes, name: str) -> Held:
  """Returns what a file says of itself.

  Args:
    content: the file's bytes.
    name: its name in errors.

  Raises:
    UserError: it is not an ONNX file, or damaged, or one that a process must not open.
  """
  onnx = package()
  try:
    model = onnx.ModelProto.FromString(content)
  except Exception:  # protobuf's own errors, by the implementation that is installed
    raise UserError(f"{name} is damaged or not an ONNX (.onnx) file: it cannot be parsed") from None
  if not model.graph.node or not model.graph.output:
    raise UserError(f"{name} is not an ONNX (.onnx) file: it holds no graph")
  try:
    reason = _refused(onnx, model)
  except UnicodeDecodeError:
    raise UserError(f"{name} is damaged: a name in it is no text") from None
  if reason:
    raise UserError(f"{name} is refused: {reason}")
  try:
    inferred = onnx.shape_inference.infer_shapes(_one(model), data_prop=True)
    elements = sum(_elements(value) for value in (*inferred.graph.value_info, *inferred.graph.output))
    held = {entry.key: entry.value for entry in model.metadata_props}
    found = Preprocessing.from_json(held[METADATA].encode()) if METADATA in held else None
    about = Description.from_json(held[DESCRIPTION].encode()) if DESCRIPTION in held else None
    sides = json.loads(held.get(GRIDS, "{}"))
    taken, gives = (_grids(sides.get(side, {})) for side in ("inputs", "outputs"))
  except Exception:  # a damaged file may raise anything
    raise UserError(f"{name} is damaged: its graph or its metadata cannot be read") from None
  if elements > MOST:
    raise UserError(f"{name} is damaged: its activations have {elements:.3g} elements; expected {MOST:.3g} at most")
  return Held(taken, gives, found, about)


def _refused(onnx: ModuleType, model: Any) -> str:
  """Returns why a file is not opened, or nothing."""
  for node in model.graph.node:
    if node.op_type in UNBOUNDED:
      return f"it holds the operator {node.op_type}, which runs without bound"
    for attribute in node.attribute:
      numbers = [*attribute.ints, *([attribute.i] if attribute.type == onnx.AttributeProto.INT else [])]
      if attribute.name in SIZES and not all(1 <= number < MOST for number in numbers):
        return f"the attribute {attribute.name!r} of its {node.op_type[:40]!r} is {numbers[:8]}; expected 1 or more"
      if attribute.HasField("t") and (reason := _constant(onnx, attribute.t)):
        return reason
  if model.functions or model.graph.sparse_initializer:
    return "it holds functions or sparse constants of its own"
  return next(filter(None, (_constant(onnx, tensor) for tensor in model.graph.initializer)), "")


def _constant(onnx: ModuleType, tensor: Any) -> str:
  if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
    return f"its constant {tensor.name!r} lies in another file"
  count = float(np.prod(tensor.dims, dtype=np.float64))
  if min(tensor.dims, default=1) < 0 or count > MOST:
    return f"its constant {tensor.name!r} has the shape {list(tensor.dims)[:8]}"
  return ""


def _one(model: Any) -> Any:
  """Returns the model with 1 for every size that is not given, such as the batch."""
  for value in (*model.graph.input, *model.graph.output):
    for size in value.type.tensor_type.shape.dim:
      if not size.HasField("dim_value"):
        size.dim_value = 1
  return model


def _elements(value: Any) -> float:
  sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
  return float(np.prod(sizes, dtype=np.float64))


def _grids(given: dict[str, Any]) -> dict[str, Grid]:
  return {str(name): _grid(one) for name, one in given.items()}


def _grid(given: dict[str, Any]) -> Grid:
  scale, zero = np.float32(given["scale"]), int(given["zero_point"])
  if not (np.isfinite(scale) and scale > 0):
    raise ValueError(given)
  return ir.grid(scale, zero)
