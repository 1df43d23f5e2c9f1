"""The layers of a stage's file: what each costs, and what its rounding does to the numbers.

The noise of a layer is that of the whole network up to it: SQNR = 10 log10(sum x^2 / sum (x - y)^2) in decibels, x what
the float model makes there and y what the integers make. Differing codes are those of the file in its runtime, every
layer an output, against the integer reference. Times are those of
`report.layer_times`.
"""

import math
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from leanax import deploy, graph
from leanax.core.errors import UserError
from leanax.deploy import ir, reference
from leanax.pipeline import trained as models
from leanax.pipeline.trained import Trained

EXAMPLES = 256  # at most, of which the noise and the codes are taken
NUMBERS = 2**24  # of activations at most, which makes the examples of a large network fewer
LARGEST = 512  # the shorter side of a matrix whose rank is found

Row = dict[str, Any]


def layers(
  trained: Trained,
  network: deploy.Network,
  file_format: deploy.Format,
  inputs: np.ndarray,
  requantize: str = "float32",
  times: Mapping[str, float] = types.MappingProxyType({}),
) -> list[Row]:
  """Returns a row for each layer that holds numbers, multiplies, or makes codes.

  Args:
    trained: the model.
    network: it as layers.
    file_format: of its file.
    inputs: (N, ...) preprocessed examples; the first of them are used.
    requantize: the rounding of the file's runtime (`Runner.requantize`).
    times: of layers, in microseconds, by their names.

  Returns:
    [{"name", "operator", "bytes", "macs", "weight_bits", "input_bits", "sparsity", "rank", "full_rank", "sqnr",
    "codes", "codes_differ", "latency_us"}]: None where a layer has no such figure. Bits are 32 for floats; the sparsity
    is that of the weights, and the rank that of their matrix (outputs by what each sums), of `full_rank` at most;
    `codes_differ` of `codes` differ.
  """
  sqnr, codes = {}, {}
  if network.quantized:
    used = inputs[: examples_of(network)]
    made = reference.run(network, used, requantize, keep=True)
    sqnr = _sqnr(models.in_float(models.fold(trained)), network, used, made)
    codes = _differing(network, file_format, used, made)
  held, rows = file_format.held(network), []
  for layer in network.layers:
    found = codes.get(layer.output)
    row = {
      "name": layer.name,
      "operator": getattr(layer, "function", "") or type(layer).__name__,
      "bytes": held[layer.name].bytes if layer.name in held else 0,
      "macs": _macs(layer, network.tensors),
      **_weights(layer, network.tensors),
      "sqnr": sqnr.get(layer.output),
      "codes": found.total if found else None,
      "codes_differ": found.count if found else None,
      "latency_us": times.get(layer.name),
    }
    if row["bytes"] or row["macs"] or (row["codes"] and not isinstance(layer, _MOVES)):
      rows.append(row)
  return rows


# Layers that round nothing.
_MOVES = ir.Reshape | ir.Transpose | ir.Slice | ir.Pad | ir.Concat | ir.Gather | ir.Broadcast | ir.MaxPool


def _macs(layer: ir.Layer, tensors: Mapping[str, ir.Tensor]) -> int:
  """Returns the multiply-accumulates of a layer for one example, zeros counted."""
  read, made = (_size(tensors[name]) for name in (layer.inputs[0], layer.output)) if layer.inputs else (0, 0)
  match layer:
    case ir.Conv2D() | ir.Dense():
      return made * math.prod(ir.values(tensors[layer.kernel]).shape[:-1])
    case ir.TransposedConv2D():
      height, width, _, outputs = ir.values(tensors[layer.kernel]).shape
      return read * height * width * outputs
    case ir.MatMul():
      return made * (tensors[layer.inputs[0]].shape[-1] or 1)
  return 0


def _size(tensor: ir.Tensor) -> int:
  """Returns the numbers of one example."""
  return math.prod(size or 1 for size in tensor.shape)


def examples_of(network: deploy.Network) -> int:
  """Returns how many examples' activations are held at once."""
  each = sum(_size(network.tensors[layer.output]) for layer in network.layers)
  return max(1, min(EXAMPLES, NUMBERS // max(each, 1)))


def _weights(layer: ir.Layer, tensors: Mapping[str, ir.Tensor]) -> Row:
  """Returns the figures of a layer's kernel and of its operands."""
  bits = [_bits(tensors[name]) for name in layer.inputs] or [32]
  none = {"weight_bits": max(bits), "input_bits": bits[0], "sparsity": None, "rank": None, "full_rank": None}
  if not isinstance(layer, ir.WEIGHTED):
    return none
  kernel = tensors[layer.constants()[0]]
  numbers = ir.values(kernel)
  row = {**none, "weight_bits": _bits(kernel), "sparsity": 1 - int(np.count_nonzero(numbers)) / max(numbers.size, 1)}
  if getattr(layer, "groups", 1) == 1:
    matrix = numbers.reshape(-1, numbers.shape[-1])
    if min(matrix.shape) <= LARGEST:
      row |= {"rank": int(np.linalg.matrix_rank(matrix.astype(np.float32))), "full_rank": min(matrix.shape)}
  return row


def _bits(tensor: ir.Tensor) -> int:
  return tensor.grid.bits if tensor.grid is not None and tensor.dtype == "int8" else 32


def _sqnr(
  plain: Trained, network: deploy.Network, inputs: np.ndarray, made: Mapping[str, np.ndarray]
) -> dict[str, float | None]:
  """Returns the SQNR by tensor, of those that the float model names too; None where there is no noise."""
  fn = graph.unrolled(models.functions(plain.recipe).fn)  # as it is lifted: each turn of a scan has layers of its own
  traced = graph.trace(fn, plain.variables, models.example(plain.recipe))
  names = {*traced.analysis.tensors.values(), *graph.exposed(traced)}
  outputs = [layer.output for layer in network.layers if layer.output in names]
  try:
    _, floats = jax.jit(graph.taps(fn, outputs))(plain.variables, inputs)
  except UserError:  # one cannot be read, such as within a loop
    return {}
  found = {}
  for name in outputs:
    x, tensor = np.asarray(floats[name], np.float64), network.tensors[name]
    y = ir.dequantize(made[name], tensor) if tensor.dtype == "int8" else made[name]
    if x.shape == y.shape:
      found[name] = decibels(x, y)
  return found


def decibels(x: np.ndarray, y: np.ndarray) -> float | None:
  """Returns the SQNR of rounded numbers y of numbers x, in decibels; None without noise or signal."""
  noise, signal = float(np.sum((x - y) ** 2)), float(np.sum(x**2))
  shown = noise > 0 and signal > 0 and math.isfinite(signal / noise)
  return 10 * math.log10(signal / noise) if shown else None


def _differing(
  network: deploy.Network, file_format: deploy.Format, inputs: np.ndarray, made: Mapping[str, np.ndarray]
) -> dict[str, deploy.Mismatch]:
  """Returns how many codes of each tensor differ between the runtime and the reference; {} where a file cannot say."""
  names = [layer.output for layer in network.layers if network.tensors[layer.output].dtype == "int8"]
  try:
    file = file_format.open(file_format.write(network._replace(outputs={name: name for name in names})))
    given = ir.arranged(file.outputs, file.batches(inputs), file.name)
  except UserError:  # a format may not give all of them
    return {}
  pairs = zip(names, given, strict=True)
  return {name: deploy.compare(codes, made[name]) for name, codes in pairs if codes.dtype == np.int8}
