"""Reductions and indices as ONNX nodes."""

from typing import Any

import numpy as np

from leanax.core.errors import unknown
from leanax.deploy import ir
from leanax.deploy.formats.onnx.emit.elementwise import TYPES
from leanax.deploy.formats.onnx.emit.nodes import IMAGE, Plan, axis_in
from leanax.deploy.formats.onnx.emit.shapes import move

_REDUCED = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin", "prod": "ReduceProd"}


def _axes(plan: Plan, name: str, axes: tuple[int, ...], keep: bool) -> tuple[bool, list[int]]:
  """Returns the layout in which axes of an activation are reduced, and the axes there.

  Axes that go must leave the others in the network's order; else the activation is taken in the network's layout.
  """
  rank = len(plan.tensors[name].shape)
  axes = tuple(axis % rank for axis in axes)
  left = [axis for axis in IMAGE if axis not in axes]
  if plan.first(name) and (keep or left == sorted(left)):
    return True, [IMAGE.index(axis) for axis in axes]
  return False, list(axes)


def _reduce(plan: Plan, layer: ir.Reduce) -> None:
  if layer.operation in ("any", "all"):
    _reduce_truth(plan, layer)
    return
  if layer.operation not in _REDUCED:
    raise unknown(f"reduction of layer {layer.name!r}:", layer.operation, ir.REDUCTIONS)
  first, axes = _axes(plan, layer.inputs[0], layer.axes, layer.keep_dims)
  inputs = [plan.real(layer.inputs[0], first)]
  fields: dict[str, Any] = {"keepdims": int(layer.keep_dims)}
  if layer.operation == "sum":  # its axes are an input since opset 13, those of the others an attribute until 18
    inputs.append(plan.constant(sorted(axes), np.int64))
  else:
    fields["axes"] = sorted(axes)
  plan.result(layer, _REDUCED[layer.operation], *inputs, first=first and layer.keep_dims, **fields)


def _reduce_truth(plan: Plan, layer: ir.Reduce) -> None:
  """Adds "any" or "all" as the largest or least of whole numbers: ONNX does not reduce truth values."""
  first, axes = _axes(plan, layer.inputs[0], layer.axes, layer.keep_dims)
  numbers = plan.node("Cast", plan.real(layer.inputs[0], first), to=TYPES["int32"])
  op = {"any": "ReduceMax", "all": "ReduceMin"}[layer.operation]
  found = plan.node(op, numbers, axes=sorted(axes), keepdims=int(layer.keep_dims))
  plan.result(layer, "Cast", found, first=first and layer.keep_dims, to=TYPES["bool"])


def _cumulative(plan: Plan, layer: ir.CumSum) -> None:
  name, first = layer.inputs[0], plan.first(*layer.inputs)
  axis = plan.constant(axis_in(layer.axis, len(plan.tensors[name].shape), first), np.int64)
  plan.result(layer, "CumSum", plan.real(name, first), axis, first=first, reverse=int(layer.reverse))


def _index(plan: Plan, layer: ir.ArgMax | ir.ArgMin) -> None:
  first, (axis,) = _axes(plan, layer.inputs[0], (layer.axis,), keep=False)
  index = plan.node(type(layer).__name__, plan.value(layer.inputs[0], first), axis=axis, keepdims=0)
  plan.result(layer, "Cast", index, to=TYPES[plan.tensors[layer.output].dtype])


def _gather(plan: Plan, layer: ir.Gather) -> None:
  data, indices = layer.inputs
  axis = layer.axis % len(plan.tensors[data].shape)
  move(plan, layer, "Gather", [data], plan.value(indices), axis=axis)


TABLE = {ir.Reduce: _reduce, ir.CumSum: _cumulative, ir.ArgMax: _index, ir.ArgMin: _index, ir.Gather: _gather}
