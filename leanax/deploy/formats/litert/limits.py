"""Limits of LiteRT's kernels and files for layers that they have."""

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from quant.quantizer import FIXED

BYTES = 2**31 - 2**20  # of constants: a flatbuffer's offsets have 31 bits
TABLES = ("gelu", "gelu_tanh", "exp", "log")  # kernels that look a code up in a table of the function's own codes
RATIO = 256.0  # XNNPACK's multipliers are smaller; its sums overflow beyond


AXES: dict[type, int] = {ir.Pad: 5, ir.Reduce: 6}  # the most that kernels take


def check_axes(layer: ir.Layer, tensors: dict[str, ir.Tensor]) -> None:
  """Refuses a layer of more axes than LiteRT's kernels of it take."""
  most = AXES.get(type(layer))
  if isinstance(layer, ir.Concat) and any(tensors[name].data is not None for name in layer.inputs):
    most = AXES[ir.Pad]  # constants become a padding
  axes = len(tensors[layer.inputs[0]].shape)
  if most is not None and axes > most:
    kind = type(layer).__name__
    raise UserError(
      f"layer {layer.name!r} is a {kind} of {axes} axes; LiteRT's kernels take {most} at most: merge axes by a reshape"
    )


def check_kernel(layer: ir.Layer, tensors: dict[str, ir.Tensor]) -> None:
  """Refuses a kernel in groups."""
  group = tensors[layer.kernel].group if isinstance(layer, ir.WEIGHTED) else None
  if group is not None:
    raise UserError(
      f"the kernel of layer {layer.name!r} has a scale for each {group} inputs; a .tflite file has one for each output "
      "channel: write it as .onnx or .stablehlo, or quantize it without groups"
    )


def check_size(tensors: dict[str, ir.Tensor]) -> None:
  """Refuses constants that do not fit into one file."""
  size = sum(tensor.data.nbytes for tensor in tensors.values() if tensor.data is not None)
  if size > BYTES:
    raise UserError(f"the network has {size:,} bytes of constants; a .tflite file holds at most {BYTES:,}")


def check_scales(layer: ir.Layer, tensors: dict[str, ir.Tensor]) -> None:
  """Refuses a layer of integers whose result has a far smaller step than what it is computed in, or another grid.

  That is what layers which move codes need: LiteRT's do not look at the grids.
  """
  made, read = tensors[layer.output], [tensors[name] for name in layer.inputs]
  if ir.moves(layer) and not all(ir.same_grid(one.grid, made.grid) for one in read if one.dtype == made.dtype):
    raise UserError(
      f"layer {layer.name!r} must have one grid for its input and its output; LiteRT moves codes as they are"
    )
  if made.grid is None or read[0].grid is None:
    return
  if isinstance(layer, ir.WEIGHTED):
    step = np.max(read[0].scale * tensors[layer.kernel].scale)
  elif isinstance(layer, ir.AvgPool):
    step = read[0].scale / np.prod(layer.window)
  elif isinstance(layer, ir.Add):
    step = max(tensor.scale for tensor in read)
  else:
    return
  if not step < RATIO * made.scale:
    raise UserError(
      f"layer {layer.name!r} computes in steps of {float(step):.3g} and makes {made.name!r} in steps of "
      f"{float(made.scale):.3g}; LiteRT's kernels need less than {RATIO:.0f} times that"
    )


def int8_kernel(layer: ir.Layer, tensors: dict[str, ir.Tensor]) -> str | None:
  """Returns what LiteRT's integer kernels make of a function whose input and output are on int8 grids.

  Measured in ai-edge-litert 2.3.0 for all 256 codes on hundreds of grids, with XNNPACK and with the plain kernels.

  Returns:
    "exact" where they give the codes of the function's values, "near" where a few codes are the next ones, which
    `deploy.reference` computes alike, and None where there is no such kernel.
  """
  made, given = tensors[layer.output], tensors[layer.inputs[0]]
  if made.grid is None or given.grid is None:
    return None
  function = layer.function if isinstance(layer, ir.Activation) else None
  if isinstance(layer, ir.Softmax) and not layer.log:
    function = "softmax"
  if function in FIXED:
    return "exact" if (float(made.scale), made.zero_point) == FIXED[function] else None
  if function in TABLES:
    return "exact"
  ratio, same = float(given.scale / made.scale), ir.same_grid(made.grid, given.grid)
  if function == "abs" and same:
    return "exact"
  if function in ("relu6", "clip"):
    named = getattr(layer, "parameters", ()) in ((), (-1, 1), (0, 1))
    return "exact" if same else "near" if named and ratio < RATIO else None
  if function == "hard_swish" and ratio < 128:
    return "near"
  slope = layer.parameters[0] if isinstance(layer, ir.Activation) and function == "leaky_relu" else 0.0
  return "near" if all(1 / 256 < abs(one) < 127 for one in (ratio, slope * ratio)) else None


def exact_int8(layer: ir.Layer, tensors: dict[str, ir.Tensor]) -> bool:
  """Returns whether LiteRT's integer kernels give exactly the codes of a function's values."""
  return int8_kernel(layer, tensors) == "exact"
