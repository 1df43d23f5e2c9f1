"""Reductions over axes, and layers that look at values, as LiteRT operators."""

from leanax.deploy import ir
from leanax.deploy.formats.litert.emit.operators import Plan, Written, read
from leanax.deploy.formats.litert.emit.shapes import Tensors, constant

_REDUCE = {
  "sum": "SUM",
  "mean": "MEAN",
  "max": "REDUCE_MAX",
  "min": "REDUCE_MIN",
  "prod": "REDUCE_PROD",
  "any": "REDUCE_ANY",
  "all": "REDUCE_ALL",
}
_COMPARE = {
  "lt": "LESS",
  "le": "LESS_EQUAL",
  "gt": "GREATER",
  "ge": "GREATER_EQUAL",
  "eq": "EQUAL",
  "ne": "NOT_EQUAL",
}


def _reduce(plan: Plan, layer: ir.Reduce, tensors: Tensors) -> None:
  inputs = layer.inputs[0], constant(plan, layer, "axes", layer.axes)
  options = {"KeepDims": True} if layer.keep_dims else {}
  plan.operators.append(Written(_REDUCE[layer.operation], inputs, layer.output, "ReducerOptions", options))


def _cumulative(plan: Plan, layer: ir.CumSum, tensors: Tensors) -> None:
  inputs = layer.inputs[0], constant(plan, layer, "axis", layer.axis)
  options = {"Reverse": True} if layer.reverse else {}
  plan.operators.append(Written("CUMSUM", inputs, layer.output, "CumsumOptions", options))


def _compare(plan: Plan, layer: ir.Compare, tensors: Tensors) -> None:
  plan.operators.append(Written(_COMPARE[layer.operation], read(plan, layer, tensors), layer.output))


def _select(plan: Plan, layer: ir.Select, tensors: Tensors) -> None:
  plan.operators.append(Written("SELECT_V2", read(plan, layer, tensors), layer.output))


def _index(plan: Plan, layer: ir.ArgMax | ir.ArgMin, tensors: Tensors) -> None:
  least = isinstance(layer, ir.ArgMin)
  code, options = ("ARG_MIN", "ArgMinOptions") if least else ("ARG_MAX", "ArgMaxOptions")
  inputs = layer.inputs[0], constant(plan, layer, "axis", layer.axis)
  plan.operators.append(Written(code, inputs, layer.output, options, {"OutputType": "INT32"}))


TABLE = {
  ir.Reduce: _reduce,
  ir.CumSum: _cumulative,
  ir.Compare: _compare,
  ir.Select: _select,
  ir.ArgMax: _index,
  ir.ArgMin: _index,
}
