"""The bytes of a file, by layer."""

from typing import NamedTuple

from leanax.deploy import ir


class Sizes(NamedTuple):
  """Bytes of a file: in total, each layer's weights, biases and scales, and the rest (graph, alignment, metadata)."""

  total: int
  layers: dict[str, int]
  rest: int


def sizes(network: ir.Network, file: bytes) -> Sizes:
  """Returns the sizes of a file that was written from `network`."""
  layers = {layer.name: sum(held(network.tensors[name]) for name in layer.constants()) for layer in network.layers}
  layers = {name: size for name, size in layers.items() if size}
  return Sizes(len(file), layers, len(file) - sum(layers.values()))


def held(constant: ir.Tensor) -> int:
  """Returns the bytes of a constant and of its scales."""
  return ir.values(constant).nbytes + (0 if constant.grid is None else constant.scale.nbytes)
