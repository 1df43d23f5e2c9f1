"""Layers of an int8 network that change no code: a ReLU6 whose grid ends at 6 is done once its input is rounded."""

import collections
import dataclasses

import numpy as np

from leanax.deploy import ir
from leanax.deploy.moves import clips


def without_idle_clips(network: ir.Network) -> ir.Network:
  """Returns the network without clips whose limits all codes of their grid are within.

  What makes the clip's input then makes its output, under the output's name. LiteRT leaves clips of codes out of
  XNNPACK, so that each one would split a file in two.
  """
  readers = collections.Counter(name for layer in network.layers for name in layer.inputs)
  outputs, tensors = set(network.outputs.values()), dict(network.tensors)
  makers = {layer.output: place for place, layer in enumerate(network.layers)}
  kept: list[ir.Layer | None] = [*network.layers]
  for place, layer in enumerate(network.layers):
    if not _is_idle(layer, network):
      continue
    (given,) = layer.inputs
    maker = kept[makers[given]] if given in makers else None
    if maker is None or readers[given] > 1 or given in outputs:
      continue
    kept[makers[given]], kept[place] = dataclasses.replace(maker, output=layer.output), None
    makers[layer.output] = makers[given]
    del tensors[given]
  return network._replace(layers=tuple(layer for layer in kept if layer is not None), tensors=tensors)


def _is_idle(layer: ir.Layer, network: ir.Network) -> bool:
  """Returns whether a layer clips codes on one grid, none of which is beyond its limits."""
  if not clips(layer) or not isinstance(layer, ir.Activation):
    return False
  given, made = network.tensors[layer.inputs[0]], network.tensors[layer.output]
  if given.grid is None or not ir.same_grid(given.grid, made.grid):
    return False
  low, high = (0.0, 6.0) if layer.function == "relu6" else layer.parameters or (0.0, np.inf)
  # As a kernel has the limits in steps, rounded to the nearest.
  steps = [np.rint(np.float64(limit) / float(made.scale)) + made.zero_point for limit in (low, high)]
  return bool(steps[0] <= ir.QMIN and steps[1] >= ir.QMAX)
