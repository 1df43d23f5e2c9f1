"""A float network and its grids to an int8 network, in numpy; nothing of the simulation's arithmetic is used.

A layer runs on integers where the runtimes have such a kernel for it and all that it reads and makes has a grid. Other
layers stay float between Dequantize and Quantize layers: a tensor with a grid is codes, and float layers read their
values, which is what the simulation computes. The kernel of such a layer is codes too, where it has a grid.

Codes are clip(round_half_even(x * (1 / s)) + z) in float32, as the number contract has it: weights symmetric, biases
in int32 steps of s_x * s_w. Grids narrower than 8 bits serve for weights, whose codes fit into int8 as they are; the
runtime has only full 8-bit ranges for activations.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from leanax.core.errors import UserError, nearest
from leanax.deploy import idle, ir
from leanax.deploy.moves import activations, clips, moved
from quant.grid import Grid

_INT32 = np.iinfo(np.int32)
KERNELS = (ir.Conv2D, ir.Dense, ir.TransposedConv2D)  # a kernel and what it multiplies
INTEGER = (*KERNELS, ir.Add, ir.AvgPool, ir.Mean, ir.Relu)  # grids of their own
RESCALED = {ir.Binary: ("mul",)}  # operations of two activations, each with a grid of its own
PRODUCTS = (2.0**-16, 2.0**8)  # scales of two factors over their product's that kernels multiply by


def to_int8(network: ir.Network, grids: Mapping[str, Grid], islands: bool = True) -> ir.Network:
  """Returns the network with codes for weights and biases and a grid for each activation that has one.

  Args:
    network: a float network.
    grids: by the name of a kernel's leaf and of an activation's tensor; see `deploy.lift`.
    islands: whether layers without integers stay float; they are refused otherwise.

  Raises:
    UserError: LiteRT lacks a grid, or a layer would stay float and must not.
  """
  for name, grid in grids.items():
    if name.endswith((":in", ":out")) and np.size(grid.scale) > 1:
      raise UserError(
        f"the activation {name!r} has {np.size(grid.scale)} scales, one for each turn of a loop; a file has one for "
        "each tensor: quantize graph.unrolled(fn), the function with its turns written out"
      )
  tensors, found = dict(network.tensors), activations(network, grids)
  for name, grid in found.items():
    tensors[name] = _on_grid(tensors[name], grid)
  made = network._replace(layers=(), tensors=tensors)
  values: dict[str, str] = {}  # the names of dequantized tensors
  for layer in network.layers:
    why = _float(layer, tensors, grids)
    if why is None:
      if isinstance(layer, ir.WEIGHTED):
        kernel = tensors[layer.kernel] = _kernel(tensors[layer.kernel], _find(grids, layer.kernel))
        if layer.bias is not None:
          tensors[layer.bias] = _bias(tensors[layer.bias], tensors[layer.inputs[0]], kernel)
      if ir.moves(layer):
        made, layer = _on_one_grid(made, layer, values)
      made = made._replace(layers=(*made.layers, layer))
    elif islands:
      if isinstance(layer, ir.WEIGHTED) and (layer.kernel in grids or layer.kernel.rsplit("#", 1)[0] in grids):
        tensors[layer.kernel] = _kernel(tensors[layer.kernel], _find(grids, layer.kernel))  # codes of a float layer
      made = _island(made, layer, values)
    else:
      raise UserError(f"the layer {layer.name!r} would stay float: {why}")
  made = idle.without_idle_clips(made)
  read = {name for layer in made.layers for name in (*layer.inputs, *layer.constants())}
  return made._replace(tensors={name: one for name, one in tensors.items() if one.data is None or name in read})


def _float(layer: ir.Layer, tensors: Mapping[str, ir.Tensor], grids: Mapping[str, Grid]) -> str | None:
  """Returns why a layer cannot run on integers; None where it can."""
  if ir.moves(layer):
    return _unmoved(layer, tensors)
  if isinstance(layer, ir.MatMul) or (isinstance(layer, ir.Binary) and layer.operation in RESCALED[ir.Binary]):
    return _unmultiplied(layer, tensors)
  clipped = clips(layer) and ir.same_grid(tensors[layer.inputs[0]].grid, tensors[layer.output].grid)
  if not isinstance(layer, INTEGER) and not clipped:
    return "not every runtime has an exact integer kernel for it"
  if isinstance(layer, ir.WEIGHTED):
    if layer.kernel not in grids and layer.kernel.rsplit("#", 1)[0] not in grids:
      return f"the kernel {layer.kernel!r} has no grid; {_near(layer.kernel, grids)}"
    if _in_groups(tensors[layer.kernel], _find(grids, layer.kernel)):
      return f"the kernel {layer.kernel!r} has scales in groups, which no integer kernel sums over"
    for name in (*layer.inputs, layer.output):
      if tensors[name].grid is None:
        return f"the activation {name!r} has no grid; {_near(name, grids)}"
    return None
  missing = next((name for name in (*layer.inputs, layer.output) if tensors[name].grid is None), None)
  return None if missing is None else f"the activation {missing!r} has no grid"


def _unmoved(layer: ir.Layer, tensors: Mapping[str, ir.Tensor]) -> str | None:
  """Returns why a layer does not move codes; None where it does: something that it reads is on its result's grid."""
  made, read = tensors[layer.output], [tensors[name] for name in moved(layer, tensors)]
  if made.grid is None:
    return f"the activation {made.name!r} has no grid"
  if all(one.data is not None for one in read) or any(ir.same_grid(one.grid, made.grid) for one in read):
    return None
  return "what it reads and what it makes have different grids"


def _unmultiplied(layer: ir.Layer, tensors: Mapping[str, ir.Tensor]) -> str | None:
  """Returns why a product is not one of codes; None where it is: of two activations on grids, made on a third."""
  made, read = tensors[layer.output], [tensors[name] for name in layer.inputs]
  if any(one.data is not None for one in read):
    return "a constant of it has no grid"
  missing = next((one.name for one in (*read, made) if one.grid is None), None)
  if missing is not None:
    return f"the activation {missing!r} has no grid"
  if isinstance(layer, ir.MatMul) and read[1].zero_point != 0:
    return f"{read[1].name!r}, its second factor, has a zero point other than 0"
  low, high = PRODUCTS
  return None if low <= read[0].scale * read[1].scale / made.scale < high else "its scales are too far apart"


def _on_one_grid(network: ir.Network, layer: ir.Layer, values: dict[str, str]) -> tuple[ir.Network, ir.Layer]:
  """Returns a layer that moves codes, behind layers that round to its result's grid what it reads on another one."""
  tensors, made, inputs = network.tensors, network.tensors[layer.output], list(layer.inputs)
  for place, name in enumerate(layer.inputs):
    tensor = tensors[name]
    if name not in moved(layer, tensors) or ir.same_grid(tensor.grid, made.grid):
      continue
    inputs[place] = f"{layer.name}:input{place}"
    on_grid = tensor._replace(name=inputs[place], dtype="int8", grid=made.grid)
    if tensor.data is not None:
      on_grid = on_grid._replace(data=ir.quantize(tensor.data, made))
    else:
      network, value = _value(network, name, values)
      round_it = ir.Quantize(f"{inputs[place]}:quantize", (value,), inputs[place])
      network = network._replace(layers=(*network.layers, round_it))
    tensors[inputs[place]] = on_grid
  return network, dataclasses.replace(layer, inputs=tuple(inputs))


def _value(network: ir.Network, name: str, values: dict[str, str]) -> tuple[ir.Network, str]:
  """Returns the name of a tensor's values, and the network with the layer that makes them of codes, if it is new."""
  if network.tensors[name].dtype == "int8" and name not in values:
    values[name] = f"{name}:values"
    network.tensors[values[name]] = ir.Tensor(values[name], network.tensors[name].shape)
    read = ir.Dequantize(f"{name}:dequantize", (name,), values[name])
    network = network._replace(layers=(*network.layers, read))
  return network, values.get(name, name)


def _island(network: ir.Network, layer: ir.Layer, values: dict[str, str]) -> ir.Network:
  """Returns the network with a float layer behind it, which reads values of codes and whose result becomes codes."""
  inputs = []
  for name in layer.inputs:
    network, value = _value(network, name, values)
    inputs.append(value)
  tensors, layers = network.tensors, list(network.layers)
  rounded = tensors[layer.output].dtype == "int8"
  output = f"{layer.output}:float" if rounded else layer.output
  layers.append(dataclasses.replace(layer, inputs=tuple(inputs), output=output))
  if rounded:
    tensors[output] = ir.Tensor(output, tensors[layer.output].shape)
    layers.append(ir.Quantize(f"{layer.output}:quantize", (output,), layer.output))
  return network._replace(layers=tuple(layers))


def _find(grids: Mapping[str, Grid], name: str) -> Grid:
  """Returns the grid of a kernel, by its own name or by that of the leaf it is another use of."""
  for key in (name, name.rsplit("#", 1)[0]):
    if key in grids:
      return grids[key]
  raise UserError(f"the kernel {name!r} has no grid; {_near(name, grids)}")


def _near(name: str, grids: Mapping[str, Grid]) -> str:
  return f"grids near it: {', '.join(nearest(name, grids) or sorted(grids)[:3]) or 'none'}"


def _on_grid(tensor: ir.Tensor, grid: Grid) -> ir.Tensor:
  """Returns an activation on its grid; unsigned codes move down by 128."""
  name = tensor.name
  if grid.format != "integer":
    raise UserError(f"the activation {name!r} is on a grid of {grid.format!r}; the LiteRT runtime has integers only")
  if grid.bits != 8:
    raise UserError(f"the activation {name!r} has {grid.bits} bits; the LiteRT runtime has 8-bit activations only")
  if grid.narrow:
    raise UserError(f"the activation {name!r} is on a narrow grid; the LiteRT runtime uses all 256 codes")
  scale, zero = np.asarray(grid.scale, np.float32), np.asarray(grid.zero_point)
  if scale.size != 1:
    raise UserError(f"the activation {name!r} has {scale.size} scales; the LiteRT runtime has one scale per tensor")
  zero_point = int(zero.reshape(())) - (0 if grid.signed else 128)
  return tensor._replace(dtype="int8", grid=ir.grid(scale.reshape(()), zero_point))


def _in_groups(tensor: ir.Tensor, grid: Grid) -> bool:
  """Returns whether a kernel's grid has a scale for each of several blocks along what is summed over."""
  scale = np.asarray(grid.scale)
  if grid.axis is not None or scale.ndim < 2 or scale.ndim != len(tensor.shape) or scale.size == scale.shape[-1]:
    return False
  return all(int(length or 0) % count == 0 for length, count in zip(tensor.shape, scale.shape, strict=True))


def _kernel(tensor: ir.Tensor, grid: Grid) -> ir.Tensor:
  """Returns weights as codes, with a scale per output channel (the last axis), one for all, or one for each block."""
  name, weights = tensor.name, ir.values(tensor)
  scale, zero = np.asarray(grid.scale, np.float32), np.asarray(grid.zero_point)
  if grid.format != "integer":
    raise UserError(f"the kernel {tensor.name!r} is on a grid of {grid.format!r}; the LiteRT runtime has integers only")
  if grid.bits > 8 or not grid.signed or np.any(zero != 0):
    raise UserError(f"the kernel {name!r} is on an unsigned, shifted or wide grid; LiteRT's weights are symmetric int8")
  if _in_groups(tensor, grid):
    codes = _clipped(weights * ir.spread(np.float32(1) / scale, weights.shape), grid)
    return tensor._replace(dtype="int8", grid=ir.grid(scale, bits=grid.bits, narrow=grid.narrow), data=codes)
  if grid.axis not in (None, -1, weights.ndim - 1):
    raise UserError(f"the kernel {name!r} has scales along axis {grid.axis} of {weights.shape}; expected its last")
  if scale.size not in (1, weights.shape[-1]) or scale.size != np.prod(scale.shape[-1:], dtype=int):
    raise UserError(f"the kernel {name!r} has {scale.size} scales for {weights.shape[-1]} output channels")
  scale = scale.reshape(-1 if scale.size > 1 or scale.shape == weights.shape[-1:] else ())
  codes = _clipped(weights * (np.float32(1) / scale), grid)
  axis = weights.ndim - 1 if scale.ndim else None
  return tensor._replace(dtype="int8", grid=ir.grid(scale, bits=grid.bits, narrow=grid.narrow, axis=axis), data=codes)


def _clipped(steps: np.ndarray, grid: Grid) -> np.ndarray:
  highest = 2 ** (grid.bits - 1) - 1
  lowest = -highest if grid.narrow else -highest - 1
  return np.clip(np.rint(steps), lowest, highest).astype(np.int8)


def _bias(tensor: ir.Tensor, source: ir.Tensor, kernel: ir.Tensor) -> ir.Tensor:
  """Returns a bias as int32 codes at input scale times weight scale."""
  if not np.isfinite(ir.values(tensor)).all():
    raise UserError(f"{tensor.name!r} holds infinity, which has no code")
  grid = ir.bias_grid(source, kernel)
  steps = np.rint(ir.values(tensor) * (np.float32(1) / np.asarray(grid.scale))).astype(np.float64)
  codes = np.clip(steps, _INT32.min, _INT32.max).astype(np.int32)
  return tensor._replace(dtype="int32", grid=grid, data=codes)
