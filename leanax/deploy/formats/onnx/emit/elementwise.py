"""Pairs of tensors, comparisons and changes of type as ONNX nodes."""

from leanax.core.errors import unknown
from leanax.deploy import ir
from leanax.deploy.formats.onnx.emit.nodes import Plan

_PAIRS = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow"}
_COMPARED = {"lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "eq": "Equal"}
TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9}  # onnx.TensorProto.DataType


def _all(plan: Plan, layer: ir.Layer, op: str) -> None:
  first = plan.first(*layer.inputs)
  plan.result(layer, op, *(plan.real(name, first) for name in layer.inputs), first=first)


def _add(plan: Plan, layer: ir.Add) -> None:
  _all(plan, layer, "Add")


def _relu(plan: Plan, layer: ir.Relu) -> None:
  _all(plan, layer, "Relu")


def _binary(plan: Plan, layer: ir.Binary) -> None:
  if layer.operation not in _PAIRS:
    raise unknown(f"operation of layer {layer.name!r}:", layer.operation, _PAIRS)
  _all(plan, layer, _PAIRS[layer.operation])


def _compare(plan: Plan, layer: ir.Compare) -> None:
  first = plan.first(*layer.inputs)
  given = [plan.real(name, first) for name in layer.inputs]
  if layer.operation == "ne":
    plan.result(layer, "Not", plan.node("Equal", *given), first=first)
    return
  if layer.operation not in _COMPARED:
    raise unknown(f"comparison of layer {layer.name!r}:", layer.operation, [*_COMPARED, "ne"])
  plan.result(layer, _COMPARED[layer.operation], *given, first=first)


def _select(plan: Plan, layer: ir.Select) -> None:
  if plan.tensors[layer.output].dtype != "bool":
    _all(plan, layer, "Where")
    return
  first = plan.first(*layer.inputs)  # onnxruntime has no choice between truth values
  chosen, yes, no = (plan.real(name, first) for name in layer.inputs)
  sides = plan.node("And", chosen, yes), plan.node("And", plan.node("Not", chosen), no)
  plan.result(layer, "Or", *sides, first=first)


def _prelu(plan: Plan, layer: ir.Prelu) -> None:
  first = plan.first(*layer.inputs)
  slope = ir.values(plan.tensors[layer.slope])
  name = plan.constant(slope.reshape(-1, 1, 1) if first else slope, name=layer.slope)
  plan.result(layer, "PRelu", plan.real(layer.inputs[0], first), name, first=first)


def _quantize(plan: Plan, layer: ir.Quantize) -> None:
  first, tensor = plan.first(*layer.inputs), plan.tensors[layer.output]
  given = plan.real(layer.inputs[0], first)
  plan.moved(layer, "QuantizeLinear", given, *plan.grid(tensor), first=first)


def _dequantize(plan: Plan, layer: ir.Dequantize) -> None:
  first, tensor = plan.first(*layer.inputs), plan.tensors[layer.inputs[0]]
  plan.dequantized.add(layer.output)
  plan.moved(layer, "DequantizeLinear", plan.value(tensor.name, first), *plan.grid(tensor), first=first)


def _cast(plan: Plan, layer: ir.Cast) -> None:
  first = plan.first(*layer.inputs)
  plan.result(layer, "Cast", plan.real(layer.inputs[0], first), first=first, to=TYPES[plan.tensors[layer.output].dtype])


TABLE = {
  ir.Add: _add,
  ir.Relu: _relu,
  ir.Binary: _binary,
  ir.Compare: _compare,
  ir.Select: _select,
  ir.Prelu: _prelu,
  ir.Quantize: _quantize,
  ir.Dequantize: _dequantize,
  ir.Cast: _cast,
}
