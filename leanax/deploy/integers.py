"""A float network and its grids to an int8 network, in numpy; nothing of the simulation's arithmetic is used.

Codes are clip(round_half_even(x * (1 / s)) + z) in float32, as the number contract has it: weights symmetric, biases
in int32 steps of s_x * s_w. Grids narrower than 8 bits serve for weights, whose codes fit into int8 as they are; the
runtime has only full 8-bit ranges for activations.
"""

from collections.abc import Mapping

import numpy as np

from leanax.core.errors import UserError, nearest
from leanax.deploy import ir
from quant.grid import Grid

_INT32 = np.iinfo(np.int32)


def to_int8(network: ir.Network, grids: Mapping[str, Grid]) -> ir.Network:
  """Returns the network with codes for weights and biases and a grid for each activation.

  Args:
    network: a float network.
    grids: by the name of a kernel's leaf and of an activation's tensor; see `deploy.lift`.

  Raises:
    UserError: a grid is missing, or LiteRT lacks it.
  """
  tensors = dict(network.tensors)
  for name, grid in _activations(network, grids).items():
    tensors[name] = _on_grid(tensors[name], grid)
  for layer in network.layers:
    if isinstance(layer, ir.Conv2D | ir.Dense):
      kernel = tensors[layer.kernel] = _kernel(tensors[layer.kernel], _find(grids, layer.kernel))
      if layer.bias is not None:
        tensors[layer.bias] = _bias(tensors[layer.bias], tensors[layer.inputs[0]], kernel)
  return network._replace(tensors=tensors)


def _activations(network: ir.Network, grids: Mapping[str, Grid]) -> dict[str, Grid]:
  """Returns the grid of each activation; pools and reshapes have one for what they read and what they make.

  What only ReLUs read may be rounded to their own grid: rounding is monotone, and 0 is on the grid.
  """
  shared = [layer for layer in network.layers if isinstance(layer, ir.MaxPool | ir.Reshape)]
  others = {name for layer in network.layers if not isinstance(layer, ir.Relu) for name in layer.inputs}
  relus = [layer for layer in network.layers if isinstance(layer, ir.Relu) and layer.inputs[0] not in others]
  back = [layer for layer in network.layers if layer in shared or layer in relus]
  names = [network.input, *(layer.output for layer in network.layers)]
  found = {name: grids[name] for name in names if name in grids}
  for layer in shared:
    if layer.inputs[0] in found:
      found.setdefault(layer.output, found[layer.inputs[0]])
  for layer in reversed(back):
    if layer.output in found:
      found.setdefault(layer.inputs[0], found[layer.output])
  for name in names:
    if name not in found:
      raise UserError(f"the activation {name!r} has no grid; {_near(name, grids)}")
  for layer in relus:
    name, made = layer.inputs[0], found[layer.output]
    if name not in grids and not ir.same_grid(made, found[name]):
      raise UserError(f"the activation {name!r} has no grid, and the ReLUs of it have several; compute its ReLU once")
  return found


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


def _kernel(tensor: ir.Tensor, grid: Grid) -> ir.Tensor:
  """Returns weights as codes, with a scale per output channel (the last axis) or one for all."""
  name, weights = tensor.name, ir.values(tensor)
  scale, zero = np.asarray(grid.scale, np.float32), np.asarray(grid.zero_point)
  if grid.format != "integer":
    raise UserError(f"the kernel {tensor.name!r} is on a grid of {grid.format!r}; the LiteRT runtime has integers only")
  if grid.bits > 8 or not grid.signed or np.any(zero != 0):
    raise UserError(f"the kernel {name!r} is on an unsigned, shifted or wide grid; LiteRT's weights are symmetric int8")
  if grid.axis not in (None, -1, weights.ndim - 1):
    raise UserError(f"the kernel {name!r} has scales along axis {grid.axis} of {weights.shape}; expected its last")
  if scale.size not in (1, weights.shape[-1]) or scale.size != np.prod(scale.shape[-1:], dtype=int):
    raise UserError(f"the kernel {name!r} has {scale.size} scales for {weights.shape[-1]} output channels")
  scale = scale.reshape(-1 if scale.size > 1 or scale.shape == weights.shape[-1:] else ())
  highest = 2 ** (grid.bits - 1) - 1
  lowest = -highest if grid.narrow else -highest - 1
  codes = np.clip(np.rint(weights * (np.float32(1) / scale)), lowest, highest).astype(np.int8)
  axis = weights.ndim - 1 if scale.ndim else None
  return tensor._replace(dtype="int8", grid=ir.grid(scale, bits=grid.bits, narrow=grid.narrow, axis=axis), data=codes)


def _bias(tensor: ir.Tensor, source: ir.Tensor, kernel: ir.Tensor) -> ir.Tensor:
  """Returns a bias as int32 codes at input scale times weight scale."""
  if not np.isfinite(ir.values(tensor)).all():
    raise UserError(f"{tensor.name!r} holds infinity, which has no code")
  grid = ir.bias_grid(source, kernel)
  steps = np.rint(ir.values(tensor) * (np.float32(1) / np.asarray(grid.scale))).astype(np.float64)
  codes = np.clip(steps, _INT32.min, _INT32.max).astype(np.int32)
  return tensor._replace(dtype="int32", grid=grid, data=codes)
