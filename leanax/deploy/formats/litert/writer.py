"""Writes a Network as a LiteRT (.tflite) file, float32 or int8, with numpy, flatbuffers and the schema alone.

Files are kept small: only inputs and outputs have names, equal buffers and vectors are written once, and defaults are
left out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from leanax.deploy import ir, size, trial
from leanax.deploy.formats.litert import standard
from leanax.deploy.formats.litert.flat import Flat, schema
from leanax.deploy.formats.litert.plan import Plan, Written, planned
from leanax.deploy.formats.litert.sparse import Rows
from leanax.deploy.formats.litert.weights import content
from leanax.deploy.size import Held

METADATA = "leanax"
DESCRIPTION = "leanax.description"
VERSIONS = {  # the operator versions that brought int8, from LiteRT's table of versions; float files use the same
  "CONV_2D": 3,
  "DEPTHWISE_CONV_2D": 3,
  "FULLY_CONNECTED": 4,
  "ADD": 2,
  "MAX_POOL_2D": 2,
  "AVERAGE_POOL_2D": 2,
  "MEAN": 2,
  "PAD": 2,
  "PADV2": 2,
  "RELU": 2,
  "RELU6": 2,
  "LOGISTIC": 2,
  "TANH": 2,
  "LEAKY_RELU": 2,
  "GELU": 2,
  "EXP": 2,
  "LOG": 2,
  "ABS": 2,
  "MAXIMUM": 2,
  "MINIMUM": 2,
  "SOFTMAX": 2,
  "TRANSPOSE": 2,
  "QUANTIZE": 2,
  "DEQUANTIZE": 2,
  "BATCH_MATMUL": 2,
  "CONCATENATION": 2,
  "MIRROR_PAD": 2,
  "RESIZE_BILINEAR": 3,
  "RESIZE_NEAREST_NEIGHBOR": 3,
  "GATHER": 2,
  "SUM": 2,
  "REDUCE_MAX": 2,
  "REDUCE_MIN": 2,
  "REDUCE_PROD": 2,
  "ARG_MAX": 2,
  "ARG_MIN": 2,
  "STRIDED_SLICE": 2,
}


def check(network: ir.Network, weights: str = "", sparse: float | None = None) -> None:
  """Refuses a network that LiteRT cannot hold.

  Raises:
    UserError: a layer, a ratio of scales or a size that LiteRT lacks, or a missing extra.
  """
  schema()
  planned(network, weights, sparse)


def held(network: ir.Network, weights: str = "", sparse: float | None = None) -> dict[str, Held]:
  """Returns the constants of each layer as a file holds them."""
  plan = planned(network, weights, sparse)

  def held_bytes(constant: ir.Tensor) -> int:
    rows = plan.rows.get(constant.name)
    return len(content(constant)) if rows is None else rows.bytes

  return size.held(network._replace(tensors={**network.tensors, **plan.tensors}), held_bytes)


def write(network: ir.Network, weights: str = "", sparse: float | None = None) -> bytes:
  """Returns the network as the bytes of a .tflite file.

  Input and output are int8 for an int8 network (`ir.float_ends` gives it float ends) and float32 for a float one; their
  batch is 1 and can be resized. The preprocessing is kept as JSON in the metadata buffer named "leanax", and a
  description in that named "leanax.description" and in the metadata that tools of TensorFlow Lite read.

  Raises:
    UserError: what `check` refuses.
  """
  network = ir.separate_outputs(network)
  packed = _pack(planned(network, weights, sparse), network)
  return trial.note(standard.with_labels(packed, standard.labels_of(network)))


def _pack(plan: Plan, network: ir.Network) -> bytes:
  """Returns the plan as a flatbuffer."""
  flat = Flat()
  # Tensors: those that an operator reads or makes; operators name them by number.
  used = {name for op in plan.operators for name in (*op.inputs, op.output)} | set(network.inputs.values())
  names = [name for name in plan.tensors if name in used]
  index = {name: position for position, name in enumerate(names)}
  labels = {tensor: name for ends in (network.outputs, network.inputs) for name, tensor in ends.items()}
  buffers, contents = [flat.table("Buffer")], {b"": 0}

  def keep(content: bytes) -> int:
    if content not in contents:
      contents[content] = len(buffers)
      buffers.append(flat.table("Buffer", Data=flat.data(content)))
    return contents[content]

  tensors = [_tensor(flat, plan.tensors[name], keep, labels.get(name), plan.rows.get(name)) for name in names]
  # Operators, in the order of the network, which is the order of execution.
  versions = [(op.code, op.version or VERSIONS.get(op.code, 1)) for op in plan.operators]
  codes = sorted(set(versions))
  operators = [_operator(flat, op, codes.index(own), index) for op, own in zip(plan.operators, versions, strict=True)]
  graph = flat.table(
    "SubGraph",
    Inputs=flat.vector([index[name] for name in network.inputs.values()], "int32"),
    Outputs=flat.vector([index[name] for name in network.outputs.values()], "int32"),
    Tensors=flat.tables(tensors),
    Operators=flat.tables(operators),
  )
  # Preprocessing and description travel as metadata: a runtime ignores it, and `open` reads them back.
  entries = {} if network.preprocessing is None else {METADATA: network.preprocessing.to_json()}
  if network.description is not None:
    entries |= {DESCRIPTION: network.description.to_json(), standard.NAME: standard.metadata(network)}
  held = [flat.table("Metadata", Name=flat.text(key), Buffer=keep(value)) for key, value in entries.items()]
  metadata = flat.tables(held) if held else None
  # The signature: what the caller feeds and gets, by name.
  signature = flat.table(
    "SignatureDef",
    Inputs=_signature(flat, network.inputs, index),
    Outputs=_signature(flat, network.outputs, index),
    SignatureKey=flat.text("serving_default"),
  )
  fields = {
    "SignatureDefs": flat.tables([signature]),
    "Version": 3,
    "OperatorCodes": flat.tables([_code(flat, *code) for code in codes]),
    "Subgraphs": flat.tables([graph]),
    "Buffers": flat.tables(buffers),
    "Metadata": metadata,
  }
  return flat.finish(flat.table("Model", **fields))


def _signature(flat: Flat, ends: Mapping[str, str], index: dict[str, int]) -> int:
  return flat.tables(
    [flat.table("TensorMap", Name=flat.text(name), TensorIndex=index[tensor]) for name, tensor in ends.items()]
  )


def _code(flat: Flat, code: str, version: int) -> int:
  number = getattr(flat.schema.BuiltinOperator, code)
  return flat.table("OperatorCode", DeprecatedBuiltinCode=min(number, 127), BuiltinCode=number, Version=version)


def _tensor(flat: Flat, tensor: ir.Tensor, keep: Any, label: str | None = None, rows: Rows | None = None) -> int:
  quantization = None
  if tensor.grid is not None:
    scales = np.atleast_1d(tensor.scale)
    zeros = flat.vector(np.full(len(scales), tensor.zero_point), "int64")
    quantization = flat.table(
      "QuantizationParameters",
      Scale=flat.vector(scales, "float32"),
      ZeroPoint=zeros,
      QuantizedDimension=tensor.axis or 0,
    )
  constant = tensor.data is not None
  shape = [1 if size is None else size for size in tensor.shape]
  signature = None if constant else flat.vector([-1 if size is None else size for size in tensor.shape], "int32")
  return flat.table(
    "Tensor",
    Name=None if label is None else flat.text(label),
    Shape=flat.vector(shape, "int32"),
    Type=getattr(flat.schema.TensorType, tensor.dtype.upper()),
    Buffer=keep((content(tensor) if rows is None else rows.values.tobytes()) if constant else b""),
    Quantization=quantization,
    ShapeSignature=signature,
    Sparsity=None if rows is None else rows.write(flat),
  )


_NAMED = {
  "Padding": "Padding",
  "FusedActivationFunction": "ActivationFunctionType",
  "Mode": "MirrorPadMode",
  "InDataType": "TensorType",
  "OutDataType": "TensorType",
  "OutputType": "TensorType",
}


def _operator(flat: Flat, op: Written, code: int, index: dict[str, int]) -> int:
  options = kind = None
  if op.options is not None:
    fields = dict(op.fields)
    for name, enum in _NAMED.items():
      if fields.get(name) is not None:
        fields[name] = getattr(getattr(flat.schema, enum), fields[name])
    if "NewShape" in fields:
      fields["NewShape"] = flat.vector(fields["NewShape"], "int32")
    options, kind = flat.table(op.options, **fields), getattr(flat.schema.BuiltinOptions, op.options)
  inputs = flat.vector([-1 if name is None else index[name] for name in op.inputs], "int32")
  outputs = flat.vector([index[op.output]], "int32")
  return flat.table(
    "Operator", OpcodeIndex=code, Inputs=inputs, Outputs=outputs, BuiltinOptionsType=kind, BuiltinOptions=options
  )
