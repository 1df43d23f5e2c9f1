"""Layers that move numbers without changing them as LiteRT operators.

The batch is resized at run time, so no constant may hold it: a slice is masked there, and what is repeated is tiled.
"""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.formats.litert.emit.operators import Plan, Written, keep, read

Tensors = dict[str, ir.Tensor]


def constant(plan: Plan, layer: ir.Layer, name: str, data: object, dtype: str = "int32") -> str:
  """Adds a constant of a layer's own to the plan and returns its name."""
  array = np.array(data, dtype)
  return keep(plan, ir.Tensor(f"{layer.name}:{name}", array.shape, dtype, data=array))


def _reshape(plan: Plan, layer: ir.Reshape, tensors: Tensors) -> None:
  shape = np.array([-1, *tensors[layer.output].shape[1:]], np.int32)
  named = constant(plan, layer, "shape", shape)
  plan.operators.append(
    Written("RESHAPE", (layer.inputs[0], named), layer.output, "ReshapeOptions", {"NewShape": shape})
  )


def _transpose(plan: Plan, layer: ir.Transpose, tensors: Tensors) -> None:
  order = constant(plan, layer, "order", layer.permutation)
  version = {5: 4, 6: 6}.get(len(layer.permutation), 2)
  plan.operators.append(Written("TRANSPOSE", (layer.inputs[0], order), layer.output, version=version))


def _concat(plan: Plan, layer: ir.Concat, tensors: Tensors) -> None:
  """Adds a join; a constant becomes a padding of its neighbour, to which it is then added: that follows the batch."""
  parts = [tensors[name] for name in layer.inputs]
  fixed = [part.data is not None for part in parts]
  fields = {"Axis": layer.axis}
  if not any(fixed):
    plan.operators.append(Written("CONCATENATION", layer.inputs, layer.output, "ConcatenationOptions", fields))
    return
  first = fixed.index(False)
  sizes = [int(part.shape[layer.axis] or 0) for part in parts]
  joined, before = [], sum(sizes[:first])
  for place in range(first, len(parts)):
    if fixed[place]:
      continue
    behind = next((k for k in range(place + 1, len(parts)) if not fixed[k]), len(parts))
    after = sum(sizes[place + 1 : behind])
    joined.append(_widened(plan, layer, parts[place], (before, after), f"{layer.name}:part{place}"))
    before = 0
  made = tensors[layer.output]
  wide = joined[0]
  if len(joined) > 1:
    wide = keep(plan, made._replace(name=f"{layer.name}:joined"))
    plan.operators.append(Written("CONCATENATION", tuple(joined), wide, "ConcatenationOptions", fields))
  shapes = [(1, *(int(size or 0) for size in part.shape[1:])) for part in parts]
  nothing = 0 if made.grid is None else made.zero_point
  held = (np.full(shape, nothing) if part.data is None else part.data for part, shape in zip(parts, shapes))
  full = np.concatenate([np.broadcast_to(one, shape) for one, shape in zip(held, shapes)], layer.axis)
  added = made._replace(name=f"{layer.name}:constants", shape=full.shape, data=full.astype(made.dtype))
  plan.operators.append(Written("ADD", (wide, keep(plan, added)), made.name))


def _widened(plan: Plan, layer: ir.Concat, part: ir.Tensor, widths: tuple[int, int], name: str) -> str:
  if not any(widths):
    return part.name
  shape = tuple(size + sum(widths) if axis == layer.axis and size else size for axis, size in enumerate(part.shape))
  wide = keep(plan, part._replace(name=name, shape=shape))
  pads = [widths if axis == layer.axis else (0, 0) for axis in range(len(shape))]
  named = keep(plan, ir.Tensor(f"{name}:pads", (len(shape), 2), "int32", data=np.array(pads, np.int32)))
  plan.operators.append(Written("PAD", (part.name, named), wide))
  return wide


def _slice(plan: Plan, layer: ir.Slice, tensors: Tensors) -> None:
  numbers = (layer.starts, [stop or 0 for stop in layer.stops], layer.strides)
  named = (constant(plan, layer, name, n) for name, n in zip(("starts", "stops", "strides"), numbers, strict=True))
  options = {"BeginMask": 1, "EndMask": 1}  # the batch is whole
  plan.operators.append(
    Written("STRIDED_SLICE", (layer.inputs[0], *named), layer.output, "StridedSliceOptions", options)
  )


def _pad(plan: Plan, layer: ir.Pad, tensors: Tensors) -> None:
  given = tensors[layer.inputs[0]]
  widths = constant(plan, layer, "pads", layer.padding)
  if layer.mode != "constant":
    mode = {"Mode": layer.mode.upper()}
    plan.operators.append(Written("MIRROR_PAD", (given.name, widths), layer.output, "MirrorPadOptions", mode))
  elif layer.value == 0:
    plan.operators.append(Written("PAD", (given.name, widths), layer.output))
  else:
    code = layer.value if given.grid is None else ir.quantize(np.array(layer.value), given)
    fill = keep(plan, given._replace(name=f"{layer.name}:fill", shape=(1,), data=np.array([code], given.dtype)))
    plan.operators.append(Written("PADV2", (given.name, widths, fill), layer.output))


def _broadcast(plan: Plan, layer: ir.Broadcast, tensors: Tensors) -> None:
  given, made = tensors[layer.inputs[0]].shape, tensors[layer.output].shape
  times = [1, *(int(new or 0) // int(old or 1) for old, new in zip(given[1:], made[1:], strict=True))]
  plan.operators.append(Written("TILE", (layer.inputs[0], constant(plan, layer, "times", times)), layer.output))


def _resize(plan: Plan, layer: ir.Resize, tensors: Tensors) -> None:
  size = constant(plan, layer, "size", tensors[layer.output].shape[1:3])
  kind = {"nearest": ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions")}
  code, options = kind.get(layer.method, ("RESIZE_BILINEAR", "ResizeBilinearOptions"))
  fields = {"HalfPixelCenters": True}
  plan.operators.append(Written(code, (layer.inputs[0], size), layer.output, options, fields))


def _gather(plan: Plan, layer: ir.Gather, tensors: Tensors) -> None:
  inputs = read(plan, layer, tensors)
  plan.operators.append(Written("GATHER", inputs, layer.output, "GatherOptions", {"Axis": layer.axis}))


def _cast(plan: Plan, layer: ir.Cast, tensors: Tensors) -> None:
  types = {"InDataType": tensors[layer.inputs[0]].dtype.upper(), "OutDataType": tensors[layer.output].dtype.upper()}
  plan.operators.append(Written("CAST", layer.inputs, layer.output, "CastOptions", types))


TABLE = {
  ir.Reshape: _reshape,
  ir.Transpose: _transpose,
  ir.Concat: _concat,
  ir.Slice: _slice,
  ir.Pad: _pad,
  ir.Broadcast: _broadcast,
  ir.Resize: _resize,
  ir.Gather: _gather,
  ir.Cast: _cast,
}
