"""Float layers between Dequantize and Quantize layers for which LiteRT has an integer kernel that gives their codes."""

import dataclasses
from collections import Counter

from leanax.deploy import ir
from leanax.deploy.formats.litert.limits import exact_int8


def with_kernels(network: ir.Network) -> ir.Network:
  """Returns the network with such functions on codes; Dequantize layers that nothing reads any more are left out."""
  read = Counter(name for layer in network.layers for name in layer.inputs)
  read.update(network.outputs.values())
  dequantized = {layer.output: layer.inputs[0] for layer in network.layers if isinstance(layer, ir.Dequantize)}
  quantized = {layer.inputs[0]: layer for layer in network.layers if isinstance(layer, ir.Quantize)}
  layers: list[ir.Layer] = []
  gone: set[str] = set()  # tensors that no layer makes any more
  for layer in network.layers:
    source = dequantized.get(layer.inputs[0])
    after = quantized.get(layer.output)
    if isinstance(layer, ir.Activation | ir.Softmax) and source and after is not None and read[layer.output] == 1:
      on_codes = dataclasses.replace(layer, inputs=(source,), output=after.output)
      if exact_int8(on_codes, network.tensors):
        layers.append(on_codes)
        gone.add(layer.output)
        read[layer.inputs[0]] -= 1
        continue
    layers.append(layer)
  layers = [
    layer
    for layer in layers
    if not (isinstance(layer, ir.Quantize) and layer.inputs[0] in gone)
    and not (isinstance(layer, ir.Dequantize) and not read[layer.output])
  ]
  return network._replace(layers=tuple(layers))
