"""The tables of a .tflite file: its constants and metadata, and what would end the process in the runtime.

The runtime checks a file's tables, indices and shapes itself and raises. It allocates whatever a file declares until
the process is killed, and ends the process itself for a sum whose scales are too far apart.
"""

from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy.description import Description
from leanax.deploy.formats.litert import sparse
from leanax.deploy.formats.litert.flat import schema
from leanax.deploy.formats.litert.weights import unpacked
from leanax.deploy.formats.litert.writer import DESCRIPTION, METADATA
from leanax.deploy.preprocessing import Preprocessing

MOST = 2**27  # elements of all activations
TYPES = ("float32", "float16", "int32", "int8", "int4", "uint8", "bool")  # of constants


def checked(content: bytes, name: str) -> tuple[Preprocessing | None, Description | None]:
  """Returns the preprocessing and the description in a file's metadata, if they are there.

  Args:
    content: the file's bytes.
    name: its name in errors.

  Raises:
    UserError: it is not a LiteRT file, or damaged.
  """
  tables = schema()
  if content[4:8] != b"TFL3":
    raise UserError(f"{name} is not a LiteRT (.tflite) file: its identifier is not TFL3")
  try:
    model = tables.Model.GetRootAs(content, 0)
    graphs = [model.Subgraphs(position) for position in range(model.SubgraphsLength())]
    elements = sum(_elements(model, graph) for graph in graphs)
    apart = any(_scales_apart(tables, model, graph) for graph in graphs)
    held = _metadata(model)
    preprocessing = Preprocessing.from_json(held[METADATA]) if METADATA in held else None
    description = Description.from_json(held[DESCRIPTION]) if DESCRIPTION in held else None
    for graph in graphs:
      _check_rows(model, graph)
  except UserError as error:
    raise UserError(f"{name} is damaged: {error}") from None
  except Exception:  # reading the tables of a damaged file may raise anything
    raise UserError(f"{name} is damaged: its tables cannot be read") from None
  if not 0 <= elements <= MOST:
    raise UserError(f"{name} is damaged: its activations have {elements:.3g} elements; expected {MOST:.3g} at most")
  if apart:
    raise UserError(f"{name} is damaged: the scales of a sum are more than 2^19 apart")
  return preprocessing, description


def constants(content: bytes) -> list[np.ndarray]:
  """Returns the weights and biases as a file holds them, each in the file's layout and type, int4 as int8."""
  tables = schema()
  types = {getattr(tables.TensorType, name.upper()): name for name in TYPES}
  model = tables.Model.GetRootAs(content, 0)
  graph, held = model.Subgraphs(0), []
  for position in range(graph.TensorsLength()):
    tensor = graph.Tensors(position)
    buffer = model.Buffers(tensor.Buffer())
    if buffer.DataLength():
      data, dtype, shape = buffer.DataAsNumpy().tobytes(), types[tensor.Type()], tuple(tensor.ShapeAsNumpy().tolist())
      if (found := tensor.Sparsity()) is None:
        held.append(unpacked(data, dtype, shape))
      else:
        held.append(sparse.read(found, shape, np.frombuffer(data, dtype)).matrix(shape))
  return held


def _check_rows(model: Any, graph: Any) -> None:
  """Refuses sparse weights whose places lie outside of their shape."""
  for position in range(graph.TensorsLength()):
    tensor = graph.Tensors(position)
    if tensor.Sparsity() is not None:
      values = model.Buffers(tensor.Buffer()).DataAsNumpy()
      if tensor.Type() != 0 or tensor.ShapeLength() != 2:
        raise UserError("its sparse weights are no float32 matrix")
      sparse.read(tensor.Sparsity(), tuple(tensor.ShapeAsNumpy().tolist()), np.frombuffer(values.tobytes(), np.float32))


def _elements(model: Any, graph: Any) -> float:
  """Returns the elements of the tensors without data, at the batch that the file declares."""
  tensors = [graph.Tensors(position) for position in range(graph.TensorsLength())]
  free = [tensor for tensor in tensors if not model.Buffers(tensor.Buffer()).DataLength()]
  return float(sum(np.prod(tensor.ShapeAsNumpy(), dtype=np.float64) for tensor in free))


def _scales_apart(tables: Any, model: Any, graph: Any) -> bool:
  """Returns whether an integer sum has an operand beyond 2^19 times the result's scale, which ends the process."""
  for position in range(graph.OperatorsLength()):
    operator = graph.Operators(position)
    if model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode() == tables.BuiltinOperator.ADD:
      ends = [graph.Tensors(i).Quantization() for i in (*operator.InputsAsNumpy(), *operator.OutputsAsNumpy())]
      *read, made = [end.Scale(0) if end is not None and end.ScaleLength() else None for end in ends]
      if made is not None and not all(scale is None or scale <= made * 2.0**19 for scale in read):
        return True
  return False


def _metadata(model: Any) -> dict[str, bytes]:
  """Returns the entries of ours."""
  entries = [model.Metadata(position) for position in range(model.MetadataLength())]
  ours = [entry for entry in entries if entry.Name() in (METADATA.encode(), DESCRIPTION.encode())]
  return {entry.Name().decode(): model.Buffers(entry.Buffer()).DataAsNumpy().tobytes() for entry in ours}
