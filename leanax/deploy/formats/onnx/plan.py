"""Layers to ONNX nodes.

Sources: the ONNX operator specification (opset 13, HardSwish apart), and onnxruntime's documentation of quantized
models: each int8 layer is DequantizeLinear, the layer in floats, QuantizeLinear, with int8 weights and int32 biases
behind a DequantizeLinear of their own, which a runtime with integer kernels replaces by these.
"""

from collections.abc import Callable

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.formats.onnx.emit import elementwise, functions, indices, pools, shapes, weighted
from leanax.deploy.formats.onnx.emit.nodes import INT4, Plan

ACTIVATIONS = {"uint8": 128, "int8": 0}  # what is added to an int8 code
OPSET = 13  # brought scales per channel; the emitters write no newer form
OPSET_INT4 = 21  # brought int4 and scales of blocks, and is asked for where a kernel is stored so
BYTES = 2**31 - 2**20  # of constants: one protobuf message is at most 2 GiB long


def planned(network: ir.Network, activations: str = "uint8", groups: str = "values") -> Plan:
  """Returns the nodes and constants of a network; the words as of `onnx`.

  Raises:
    UserError: an unsound network, or a layer or a size that ONNX lacks.
  """
  ir.check(network)
  plan = Plan(network.tensors, tuple(network.inputs.values()), ACTIVATIONS[activations], groups)
  for layer in network.layers:
    if type(layer) not in _EMIT:
      known = ", ".join(kind.__name__ for kind in _EMIT)
      raise UserError(f"layer {layer.name!r} is a {type(layer).__name__}, which ONNX lacks; expected one of {known}")
    _EMIT[type(layer)](plan, layer)
  for name in network.outputs.values():
    plan.value(name)  # the results are in the network's own layout
  if opset(plan) > OPSET:
    _renew(plan)
  size = sum(array.nbytes // (2 if array.dtype == INT4 else 1) for array in plan.constants.values())
  if size > BYTES:
    raise UserError(f"the network has {size:,} bytes of constants; an .onnx file holds at most {BYTES:,}")
  return plan


def opset(plan: Plan) -> int:
  """Returns the version of ONNX's operators that the nodes need."""
  few = any(array.dtype == INT4 for array in plan.constants.values())
  return (
    OPSET_INT4
    if few or any(node.op == "DequantizeLinear" and "block_size" in node.attributes for node in plan.nodes)
    else OPSET
  )


def _renew(plan: Plan) -> None:
  """Makes the axes of reductions an input, as newer versions of these operators have them."""
  for place, node in enumerate(plan.nodes):
    if node.op in _AXES and "axes" in node.attributes:
      axes = plan.constant(node.attributes.pop("axes"), np.int64)
      plan.nodes[place] = node._replace(inputs=(*node.inputs, axes))


_AXES = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")  # since version 18

_EMIT: dict[type, Callable[..., None]] = {
  **weighted.TABLE,
  **pools.TABLE,
  **elementwise.TABLE,
  **functions.TABLE,
  **shapes.TABLE,
  **indices.TABLE,
}
