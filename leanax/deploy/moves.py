"""The grids of activations: layers that only move or choose numbers hand them on, in both directions.

Rounding commutes with such a layer, so what is rounded behind it may be rounded before, where nobody else reads it; and
what has been rounded before is on its grid behind it.
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from quant.grid import Grid

_ONE_TENSOR = (ir.MaxPool, ir.Reshape, ir.Transpose)  # the simulation has one name for what they read and make


def activations(network: ir.Network, grids: Mapping[str, Grid]) -> dict[str, Grid]:
  """Returns the grids of activations by name, of those too that layers only move.

  What only ReLUs and other clips read may be rounded to their own grid: rounding is monotone, and 0 is on the grid.

  Raises:
    UserError: ReLUs of one activation have several grids.
  """
  names = [*network.inputs.values(), *(layer.output for layer in network.layers)]
  found = {name: grids[name] for name in names if name in grids}
  _forwards(network, found)
  rounded = set(found)
  relus = _backwards(network, found)
  _forwards(network, found)
  for layer in relus:
    name, made = layer.inputs[0], found.get(layer.output)
    if name not in rounded and name in found and not ir.same_grid(made, found[name]):
      raise UserError(f"the activation {name!r} has no grid, and the ReLUs of it have several; compute its ReLU once")
  return found


def moved(layer: ir.Layer, tensors: Mapping[str, ir.Tensor]) -> list[str]:
  """Returns the names of what a layer moves, constants too: not indices, nor what says which of two it takes."""
  return [name for name in layer.inputs if tensors[name].dtype in ("float32", "int8")]


def clips(layer: ir.Layer) -> bool:
  """Returns whether a layer clips at limits around 0, which rounding does not move: a ReLU or ReLU6."""
  if not isinstance(layer, ir.Activation) or layer.function not in ("relu", "relu6", "clip"):
    return isinstance(layer, ir.Relu)
  low, high = layer.parameters or (0.0, np.inf)
  return low <= 0 <= high


def _forwards(network: ir.Network, found: dict[str, Grid]) -> None:
  """Adds the grids of what is moved from one grid, with constants and paddings that are on it."""
  for layer in network.layers:
    if not ir.moves(layer) or layer.output in found or network.tensors[layer.output].dtype != "float32":
      continue
    read = [network.tensors[name] for name in moved(layer, network.tensors)]
    held = [found.get(one.name) for one in read if one.data is None]
    constants = [one.data for one in read if one.data is not None]
    if isinstance(layer, ir.Pad) and layer.mode == "constant":
      constants.append(np.array(layer.value, np.float32))
    grid = held[0] if held else None
    if grid is not None and all(ir.same_grid(grid, one) for one in held) and all(_holds(grid, c) for c in constants):
      found[layer.output] = grid


def _holds(grid: Grid, constant: np.ndarray) -> bool:
  """Returns whether numbers are on a grid of one scale, exactly."""
  scale, zero = np.asarray(grid.scale, np.float32), np.asarray(grid.zero_point)
  if scale.size != 1 or not np.isfinite(constant).all():
    return False
  with np.errstate(over="ignore"):  # of a mask's large number, which is on no grid
    steps = np.rint(constant / scale)
  inside = (steps + zero >= grid.qmin) & (steps + zero <= grid.qmax)
  return bool(np.all(inside & (scale * steps.astype(np.float32) == constant)))


def _backwards(network: ir.Network, found: dict[str, Grid]) -> list[ir.Layer]:
  """Adds the grids of what all readers move to one grid, or clip on one; returns the layers that clip so."""
  readers: dict[str, list[ir.Layer]] = defaultdict(list)
  for layer in network.layers:
    for name in layer.inputs:
      readers[name].append(layer)
  free = {name for name in readers if name not in network.outputs.values()}
  relus = [
    layer
    for layer in network.layers
    if clips(layer) and layer.inputs[0] in free and all(map(clips, readers[layer.inputs[0]]))
  ]
  for layer in reversed(network.layers):
    grid = found.get(layer.output)
    if grid is None or not (ir.moves(layer) or layer in relus):
      continue
    for name in moved(layer, network.tensors):
      alone = name in free and all(ir.moves(one) and ir.same_grid(found.get(one.output), grid) for one in readers[name])
      if network.tensors[name].data is None and (alone or layer in relus or isinstance(layer, _ONE_TENSOR)):
        found.setdefault(name, grid)
  return relus
