"""Writes a Network as an .onnx file, float32 or quantized, with the package onnx."""

import json
from types import ModuleType
from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.formats.onnx.emit.nodes import Node, Plan
from leanax.deploy.formats.onnx.plan import planned

OPSET = 13  # brought scales per channel; nothing that the emitters write is newer
IR_VERSION = 7  # the one that opset 13 came with
METADATA = "leanax"
ENDS = {"input": "leanax.input", "output": "leanax.output"}  # the grid of uint8 or int8 ends


def package() -> ModuleType:
  """Returns the package onnx.

  Raises:
    UserError: the extra that brings it and its runtime is not installed.
  """
  try:
    import onnx
    import onnxruntime  # noqa: F401
  except ImportError:
    raise UserError("ONNX files need the packages onnx and onnxruntime: pip install leanax[onnx]") from None
  return onnx


def check(network: ir.Network, activations: str = "uint8") -> None:
  """Refuses a network that ONNX cannot hold.

  Raises:
    UserError: a layer or a size that ONNX lacks, or a missing extra.
  """
  package()
  planned(network, activations)


def write(network: ir.Network, activations: str = "uint8") -> bytes:
  """Returns the network as the bytes of an .onnx file.

  Input and output are codes for an int8 network (uint8 ones are the int8 ones + 128) and float32 for a float one; the
  batch is symbolic, "N". The metadata hold the preprocessing as JSON under "leanax", and the grids of the codes that
  the file takes and gives under "leanax.input" and "leanax.output".

  Raises:
    UserError: what `check` refuses.
  """
  onnx = package()
  plan = planned(network, activations)
  # Ends, constants and nodes; names are those of the plan.
  ends = [_end(onnx, plan, network.tensors[name]) for name in (network.input, network.output)]
  nodes = [_node(onnx, node) for node in plan.nodes]
  read = {name for node in plan.nodes for name in node.inputs}
  held = [onnx.numpy_helper.from_array(array, name) for name, array in plan.constants.items() if name in read]
  graph = onnx.helper.make_graph(nodes, "leanax", [ends[0]], [ends[1]], held)
  model = onnx.helper.make_model(
    graph, producer_name="leanax", ir_version=IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", OPSET)]
  )
  onnx.helper.set_model_props(model, _metadata(network, plan))
  return model.SerializeToString(deterministic=True)


def _metadata(network: ir.Network, plan: Plan) -> dict[str, str]:
  found = {}
  if network.preprocessing is not None:
    found[METADATA] = network.preprocessing.to_json().decode()
  for end, key in ENDS.items():
    tensor = network.tensors[getattr(network, end)]
    if tensor.dtype == "int8":
      found[key] = json.dumps({"scale": float(tensor.scale), "zero_point": tensor.zero_point + plan.offset})
  return found


def _end(onnx: ModuleType, plan: Plan, tensor: ir.Tensor) -> Any:
  kind = plan.codes if tensor.dtype == "int8" else np.dtype(tensor.dtype)
  shape = ["N", *tensor.shape[1:]]
  return onnx.helper.make_tensor_value_info(tensor.name, onnx.helper.np_dtype_to_tensor_dtype(kind), shape)


def _node(onnx: ModuleType, node: Node) -> Any:
  fields = {key: list(value) if isinstance(value, tuple) else value for key, value in node.attributes.items()}
  return onnx.helper.make_node(node.op, list(node.inputs), [node.output], node.output, **fields)
