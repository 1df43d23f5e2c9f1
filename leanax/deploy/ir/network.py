"""Layers in order with their tensors: the whole of a compressed model."""

from typing import NamedTuple

from leanax.deploy.ir.layers import Dequantize, Layer, Quantize
from leanax.deploy.ir.tensor import Tensor, describe, values
from leanax.deploy.preprocessing import Preprocessing


class Network(NamedTuple):
  """Layers in an order in which each one's inputs are ready.

  Attributes:
    layers: the layers.
    tensors: every tensor by name, activations and constants.
    input: name of the activation that the caller feeds.
    output: name of the result.
    preprocessing: the step from raw images to the input; None when the network takes them as they are.
  """

  layers: tuple[Layer, ...]
  tensors: dict[str, Tensor]
  input: str
  output: str
  preprocessing: Preprocessing | None = None

  @property
  def quantized(self) -> bool:
    """True where its layers run on integers."""
    return any(tensor.dtype == "int8" for tensor in self.tensors.values())

  def __str__(self) -> str:
    return "\n".join([f"input {describe(self.tensors[self.input])}", *(self._line(layer) for layer in self.layers)])

  def _line(self, layer: Layer) -> str:
    made = describe(self.tensors[layer.output])
    relu = " relu" if getattr(layer, "relu", False) else ""
    held = sum(values(self.tensors[name]).size for name in layer.constants())
    return f"{type(layer).__name__}{relu} {layer.name}: {', '.join(layer.inputs)} -> {made}, {held} parameters"


def float_ends(network: Network) -> Network:
  """Returns a network with float32 ends: a Quantize layer before codes, and a Dequantize layer behind them."""
  source, result = network.tensors[network.input], network.tensors[network.output]
  if source.dtype == "int8":
    given = Tensor(f"{source.name}:given", source.shape)
    layers = (Quantize("quantize", (given.name,), source.name), *network.layers)
    network = network._replace(layers=layers, tensors={given.name: given, **network.tensors}, input=given.name)
  if result.dtype == "int8":
    taken = Tensor(f"{result.name}:taken", result.shape)
    layers = (*network.layers, Dequantize("dequantize", (result.name,), taken.name))
    network = network._replace(layers=layers, tensors={**network.tensors, taken.name: taken}, output=taken.name)
  return network
