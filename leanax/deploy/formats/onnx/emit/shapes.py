"""Layers that move numbers without changing them as ONNX nodes; int8 codes on one grid are moved as they are."""

from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.formats.onnx.emit.nodes import IMAGE, Plan, axis_in, vector


def move(
  plan: Plan, layer: ir.Layer, op: str, given: list[str], *more: str, first: bool = False, **fields: Any
) -> None:
  """Adds a layer that moves the numbers of `given`, codes as they are: their grids are that of the result."""
  plan.moved(layer, op, *(plan.value(name, first) for name in given), *more, first=first, **fields)


def reshape(plan: Plan, layer: ir.Reshape) -> None:
  """Adds a reshape; one of a vector of channels does not depend on the layout."""
  name, shape = layer.inputs[0], plan.tensors[layer.output].shape
  first = plan.first(name) and vector(plan.tensors[name])
  wanted = plan.constant([-1, *shape[1:]], np.int64)
  plan.moved(layer, "Reshape", plan.value(name, first), wanted)


def _transpose(plan: Plan, layer: ir.Transpose) -> None:
  move(plan, layer, "Transpose", list(layer.inputs), perm=layer.permutation)


def _concat(plan: Plan, layer: ir.Concat) -> None:
  first, rank = plan.first(*layer.inputs), len(plan.tensors[layer.output].shape)
  given = [_spread(plan, layer, name, first) for name in layer.inputs]
  move(plan, layer, "Concat", given, first=first, axis=axis_in(layer.axis, rank, first))


def _spread(plan: Plan, layer: ir.Concat, name: str, first: bool) -> str:
  """Returns the name of a tensor with the batch of the layer's activations; a constant has one entry for all."""
  tensor = plan.tensors[name]
  if tensor.data is None:
    return name
  beside = next(other for other in layer.inputs if plan.tensors[other].data is None)
  shape = plan.node("Shape", plan.value(beside, first))
  batch = plan.node("Slice", shape, *(plan.constant([k], np.int64) for k in (0, 1)))
  ones = plan.constant([1] * (len(tensor.shape) - 1), np.int64)
  spread = tensor._replace(name=f"{layer.name}:{name}", data=None)
  plan.tensors[spread.name] = spread
  wanted = plan.node("Concat", batch, ones, axis=0)
  plan.moved(ir.Broadcast(layer.name, (name,), spread.name), "Expand", plan.value(name, first), wanted, first=first)
  return spread.name


def _slice(plan: Plan, layer: ir.Slice) -> None:
  first, rank = plan.first(*layer.inputs), len(layer.starts)
  far = {True: np.iinfo(np.int64).max, False: np.iinfo(np.int64).min}
  ends = [far[step > 0] if stop is None else stop for stop, step in zip(layer.stops, layer.strides)]
  cut = [k for k in range(1, rank) if (layer.starts[k], layer.stops[k], layer.strides[k]) != (0, None, 1)]
  rows = [[layer.starts[k], ends[k], axis_in(k, rank, first), layer.strides[k]] for k in cut]
  numbers = [plan.constant(list(column), np.int64) for column in np.array(rows, np.int64).reshape(-1, 4).T]
  move(plan, layer, "Slice", list(layer.inputs), *numbers, first=first)


def _pad(plan: Plan, layer: ir.Pad) -> None:
  name = layer.inputs[0]
  first, tensor = plan.first(name), plan.tensors[name]
  if layer.mode == "symmetric":
    _mirror(plan, layer, first)
    return
  padding = [layer.padding[k] for k in IMAGE] if first else list(layer.padding)
  widths = plan.constant([before for before, _ in padding] + [after for _, after in padding], np.int64)
  fill = ()
  if layer.mode == "constant":
    on_codes = tensor.dtype == "int8" and ir.same_grid(tensor.grid, plan.tensors[layer.output].grid)
    value = (
      ir.quantize(np.array(layer.value, np.float32), tensor).astype(int) + plan.offset if on_codes else layer.value
    )
    dtype = plan.codes if on_codes else np.float32 if tensor.dtype == "int8" else tensor.dtype
    fill = (plan.constant(value, dtype),)
  move(plan, layer, "Pad", [name], widths, *fill, first=first, mode=layer.mode)


def _mirror(plan: Plan, layer: ir.Pad, first: bool) -> None:
  """Adds a padding that repeats the outermost entry, which ONNX lacks, as a choice of entries along each axis."""
  name = layer.inputs[0]
  tensor = plan.tensors[name]
  for axis, (before, after) in enumerate(layer.padding):
    if (before, after) == (0, 0):
      continue
    size = int(tensor.shape[axis] or 0)
    shape = (*tensor.shape[:axis], size + before + after, *tensor.shape[axis + 1 :])
    tensor = tensor._replace(name=f"{layer.name}:mirror{axis}", shape=shape)
    plan.tensors[tensor.name] = tensor
    indices = plan.constant(np.pad(np.arange(size), (before, after), "symmetric"), np.int64)
    part = ir.Gather(layer.name, (name,), tensor.name, axis)
    move(plan, part, "Gather", [name], indices, first=first, axis=axis_in(axis, len(shape), first))
    name = tensor.name
  move(plan, layer, "Identity", [name], first=first)


def _broadcast(plan: Plan, layer: ir.Broadcast) -> None:
  first, shape = plan.first(*layer.inputs), plan.tensors[layer.output].shape
  wanted = [1, *(int(size or 0) for size in shape[1:])]
  wanted = [wanted[k] for k in IMAGE] if first else wanted
  move(plan, layer, "Expand", list(layer.inputs), plan.constant(wanted, np.int64), first=first)


def _resize(plan: Plan, layer: ir.Resize) -> None:
  source, made = plan.tensors[layer.inputs[0]], plan.tensors[layer.output]
  ratios = [int(b or 0) / int(a or 1) for a, b in zip(source.shape[1:3], made.shape[1:3])]
  method = {"nearest": "nearest", "bilinear": "linear"}
  if layer.method not in method:
    raise UserError(f"layer {layer.name!r} resizes by {layer.method!r}; expected one of {', '.join(method)}")
  fields = {"mode": method[layer.method], "coordinate_transformation_mode": "half_pixel"}
  if layer.method == "nearest":
    fields["nearest_mode"] = "round_prefer_ceil"
  given = plan.value(source.name, first=True)
  scales, sizes = "", ()
  if all(ratio == int(ratio) for ratio in ratios):  # such scales are exact; others are given as sizes
    scales = plan.constant([1, 1, *ratios], np.float32)
  else:
    start = plan.node("Slice", plan.node("Shape", given), *(plan.constant([k], np.int64) for k in (0, 2)))
    sizes = (plan.node("Concat", start, plan.constant(made.shape[1:3], np.int64), axis=0),)
  if layer.method == "nearest":
    move(plan, layer, "Resize", [source.name], "", scales, *sizes, first=True, **fields)
  else:
    plan.result(layer, "Resize", plan.real(source.name, first=True), "", scales, *sizes, first=True, **fields)


TABLE = {
  ir.Reshape: reshape,
  ir.Transpose: _transpose,
  ir.Concat: _concat,
  ir.Slice: _slice,
  ir.Pad: _pad,
  ir.Broadcast: _broadcast,
  ir.Resize: _resize,
}
