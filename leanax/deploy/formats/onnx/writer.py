"""Writes a Network as an .onnx file, float32 or quantized, with the package onnx."""

import json
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir, size, trial
from leanax.deploy.formats.onnx.emit.groups import is_int4
from leanax.deploy.formats.onnx.emit.nodes import Node, Plan
from leanax.deploy.formats.onnx.plan import OPSET, OPSET_INT4, opset, planned

IR_VERSIONS = {OPSET: 7, OPSET_INT4: 10}  # those that the versions of the operators came with
DOMAINS = {"MatMulNBits": "com.microsoft"}  # of operators that are not ONNX's own
METADATA = "leanax"
DESCRIPTION = "leanax.description"
GRIDS = "leanax.grids"  # of uint8 and int8 ends


def package() -> ModuleType:
  """Returns the package onnx.

  Raises:
    UserError: the extra that brings it and its runtime is not installed.
  """
  try:
    import onnx
    import onnxruntime  # noqa: F401
  except ImportError as error:
    raise UserError(f"ONNX files need the packages onnx and onnxruntime: pip install leanax[onnx] ({error})") from None
  return onnx


def check(network: ir.Network, activations: str = "uint8", groups: str = "values") -> None:
  """Refuses a network that ONNX cannot hold.

  Raises:
    UserError: a layer or a size that ONNX lacks, or a missing extra.
  """
  package()
  planned(network, activations, groups)


def held(network: ir.Network) -> dict[str, size.Held]:
  """Returns the constants of each layer as a file holds them."""
  kernels = {layer.kernel for layer in network.layers if isinstance(layer, ir.WEIGHTED)}
  few = {name: one._replace(dtype="int4") for name, one in network.tensors.items() if name in kernels and is_int4(one)}

  def bytes_of(constant: ir.Tensor) -> int:
    return -(-ir.values(constant).size // 2) if constant.name in few else ir.values(constant).nbytes

  return size.held(network._replace(tensors={**network.tensors, **few}), bytes_of)


def write(network: ir.Network, activations: str = "uint8", groups: str = "values") -> bytes:
  """Returns the network as the bytes of an .onnx file.

  Input and output are codes for an int8 network (uint8 ones are the int8 ones + 128) and float32 for a float one; the
  batch is symbolic, "N", and the ends have the names that the network has for them. The metadata hold as JSON the
  preprocessing under "leanax", the description under "leanax.description", and under "leanax.grids" the grids of the
  codes that the file takes and gives.

  Raises:
    UserError: what `check` refuses.
  """
  onnx = package()
  plan = planned(network, activations, groups)
  # Ends, constants and nodes; names between the ends are those of the plan.
  called = {tensor: name for ends in (network.outputs, network.inputs) for name, tensor in ends.items()}
  labels, short = {*network.inputs, *network.outputs}, _short_names(plan)

  def name_of(value: str) -> str:
    if value in called:
      return called[value]
    value = short.get(value, value)
    return f"{value}:inner" if value in labels else value

  sides = [
    [_end(onnx, plan, network.tensors[tensor], name) for name, tensor in ends.items()]
    for ends in (network.inputs, network.outputs)
  ]
  nodes = [_node(onnx, node, name_of) for node in plan.nodes]
  again = [(called[tensor], name) for name, tensor in network.outputs.items() if called[tensor] != name]
  nodes += [onnx.helper.make_node("Identity", [first], [name]) for first, name in again]  # a result that has two names
  read = {name for node in plan.nodes for name in node.inputs}
  held = [onnx.numpy_helper.from_array(array, name_of(name)) for name, array in plan.constants.items() if name in read]
  graph = onnx.helper.make_graph(nodes, "leanax", *sides, held)
  version = opset(plan)
  domains = {domain for node in plan.nodes if (domain := DOMAINS.get(node.op))}
  imports = [onnx.helper.make_opsetid("", version), *(onnx.helper.make_opsetid(one, 1) for one in sorted(domains))]
  model = onnx.helper.make_model(graph, producer_name="leanax", ir_version=IR_VERSIONS[version], opset_imports=imports)
  onnx.helper.set_model_props(model, _metadata(network, plan))
  return trial.note(model.SerializeToString(deterministic=True))


def _short_names(plan: Plan) -> dict[str, str]:
  """Returns unique names for what is called by a chain of operators: the path and the last one, "a/kernel:Mul#2".

  Those of constants end in their role. Others keep their names.
  """
  makers = {node.output: node.op for node in plan.nodes}
  every = [*plan.constants, *makers]
  taken, counts, found = set(every), Counter[str](), dict[str, str]()
  for name in every:
    path, *chain = name.split(":")
    if len(chain) < 2:
      continue
    base = short = f"{path}:{makers.get(name, chain[-1])}"
    while short in taken:
      counts[base] += 1
      short = f"{base}#{counts[base]}"
    if len(short) < len(name):
      taken.add(short)
      found[name] = short
  return found


def _metadata(network: ir.Network, plan: Plan) -> dict[str, str]:
  found = {}
  if network.preprocessing is not None:
    found[METADATA] = network.preprocessing.to_json().decode()
  if network.description is not None:
    found[DESCRIPTION] = network.description.to_json().decode()
  grids = [
    {name: _grid(network.tensors[tensor], plan) for name, tensor in ends.items() if network.tensors[tensor].grid}
    for ends in (network.inputs, network.outputs)
  ]
  if any(grids):
    found[GRIDS] = json.dumps(dict(zip(("inputs", "outputs"), grids, strict=True)))
  return found


def _grid(tensor: ir.Tensor, plan: Plan) -> dict[str, float]:
  return {"scale": float(tensor.scale), "zero_point": tensor.zero_point + plan.offset}


def _end(onnx: ModuleType, plan: Plan, tensor: ir.Tensor, name: str) -> Any:
  kind = plan.codes if tensor.dtype == "int8" else np.dtype(tensor.dtype)
  shape = ["N", *tensor.shape[1:]]
  return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(kind), shape)


def _node(onnx: ModuleType, node: Node, name_of: Callable[[str], str]) -> Any:
  fields = {key: list(value) if isinstance(value, tuple) else value for key, value in node.attributes.items()}
  inputs, output = [name_of(name) for name in node.inputs], name_of(node.output)
  return onnx.helper.make_node(node.op, inputs, [output], output, domain=DOMAINS.get(node.op), **fields)
