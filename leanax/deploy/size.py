"""The bytes of a file, by layer."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from leanax.deploy import ir


class Held(NamedTuple):
  """The constants of a layer in a file: the type of its weights, and the bytes of these, its biases and scales."""

  type: str
  bytes: int


class Sizes(NamedTuple):
  """Bytes of a file: in total, each layer's weights, biases and scales, and the rest (graph, alignment, metadata)."""

  total: int
  layers: dict[str, int]
  rest: int


def sizes(held: Mapping[str, Held], file: bytes) -> Sizes:
  """Returns the sizes of a file that holds this of each layer (`Format.held` of its network)."""
  layers = {name: one.bytes for name, one in held.items() if one.bytes}
  return Sizes(len(file), layers, len(file) - sum(layers.values()))


def held(network: ir.Network, size: Callable[[ir.Tensor], int] = lambda one: ir.values(one).nbytes) -> dict[str, Held]:
  """Returns the constants of each layer that has some, by its name; `size` gives the bytes of one without scales."""
  found = {}
  for layer in network.layers:
    if constants := [network.tensors[name] for name in layer.constants()]:
      scales = sum(one.scale.nbytes for one in constants if one.grid is not None)
      found[layer.name] = Held(_type(constants[0]), scales + sum(map(size, constants)))
  return found


def _type(weights: ir.Tensor) -> str:
  """Returns the type of weights, and the bits of their grid where they are fewer."""
  bits = None if weights.grid is None else weights.grid.bits
  return weights.dtype if bits is None or weights.dtype == f"int{bits}" else f"{weights.dtype} of {bits} bits"
