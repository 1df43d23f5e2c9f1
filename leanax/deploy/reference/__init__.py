"""An interpreter of the layer IR in plain numpy: the judge between what training simulates and what a runtime does.

It shares no arithmetic with the simulation or with the writers. Integers follow arXiv:1712.05877: int8 codes less
their zero points, int32 accumulators and biases, then a requantization whose rounding is chosen (deploy/requantize.py
says what each is):

- "float32" follows XNNPACK in every layer: one float32 product for convolutions, dense layers, means and average
  pools, and XNNPACK's 21-bit fixed point for sums;
- "single" and "double" follow LiteRT's plain kernels: 31-bit fixed point everywhere, sums at 20 extra bits;
- "litert" is what the plain kernels of ai-edge-litert 2.3.0 were found to do: "double", but dense layers round once,
  ties away from zero;
- "onnxruntime" is what onnxruntime does on x86 with FMA: "float32" for products and pools, and sums, means, ReLUs and
  quantization rounded once, to even, from float32 numbers of its own.

Products are summed in float64, where each is exact (a sum stays far below 2^53), and the total is cut to int32 as an
accumulator would be. Float networks run in float32 with float64 sums.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from leanax.core.errors import UserError, unknown
from leanax.deploy import ir
from leanax.deploy.reference import choices, elementwise, functions, pools, shapes, weighted
from leanax.deploy.reference.context import Context, quantize

__all__ = ["MODES", "quantize", "run", "step"]

MODES: dict[str, tuple[str, ...]] = {  # the rounding of dense layers, of all others, and the runtime if not LiteRT
  "float32": ("float32", "float32"),
  "single": ("single", "single"),
  "double": ("double", "double"),
  "litert": ("away", "double"),
  "onnxruntime": ("float32", "float32", "onnxruntime"),
}


def run(network: ir.Network, images: Any, requantize: str = "float32", batch: int = 256, keep: bool = False) -> Any:
  """Runs a network on inputs.

  Args:
    network: any network of the IR, float or int8.
    images: (N, ...) inputs; where the input is int8 its codes, or floats, which are quantized on the input's grid.
      Of several inputs a dict by name, or a tuple.
    requantize: "float32", "single", "double", "litert" or "onnxruntime"; float networks ignore it.
    batch: how many inputs at a time (memory).
    keep: return every activation by name instead of the output.

  Returns:
    (N, ...) int8 codes or floats, of several outputs a dict by name; with `keep` a dict of all activations.

  Raises:
    UserError: inputs of the wrong shape, or an unknown rounding.
  """
  if requantize not in MODES:
    raise unknown("requantization", requantize, MODES)
  sources = [network.tensors[name] for name in network.inputs.values()]
  arrays = ir.arranged(network.inputs, images, "the network")
  arrays = [_input(x, source) for x, source in zip(arrays, sources, strict=True)]
  context = Context(network.tensors, *MODES[requantize])
  parts: list[dict[str, np.ndarray]] = []
  for start in range(0, max(len(arrays[0]), 1), batch):
    values = {source.name: x[start : start + batch] for source, x in zip(sources, arrays, strict=True)}
    for layer in network.layers:
      read = [values[name] if name in values else ir.values(network.tensors[name]) for name in layer.inputs]
      values[layer.output] = _LAYERS[type(layer)](layer, read, context)
    parts.append(values if keep else {name: values[name] for name in network.outputs.values()})
  merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  return merged if keep else ir.returned(network.outputs, [merged[name] for name in network.outputs.values()])


def _input(x: np.ndarray, source: ir.Tensor) -> np.ndarray:
  """Returns an input as its tensor has it.

  Raises:
    UserError: another shape, or NaN where codes are needed.
  """
  x = np.asarray(x)
  if x.shape[1:] != source.shape[1:]:
    raise UserError(f"the network takes inputs of shape (N, {', '.join(map(str, source.shape[1:]))}), not {x.shape}")
  if source.dtype == "int8" and x.dtype != np.int8:
    if np.isnan(x).any():
      raise UserError("the network was given inputs that hold NaN, which has no code")
    return quantize(x, source)
  return x


def step(
  layer: ir.Layer, inputs: list[np.ndarray], tensors: dict[str, ir.Tensor], requantize: str = "float32"
) -> np.ndarray:
  """Runs one layer on given inputs."""
  return _LAYERS[type(layer)](layer, inputs, Context(tensors, *MODES[requantize]))


_LAYERS: dict[type, Callable[..., np.ndarray]] = {
  **weighted.TABLE,
  **pools.TABLE,
  **elementwise.TABLE,
  **functions.TABLE,
  **shapes.TABLE,
  **choices.TABLE,
}
