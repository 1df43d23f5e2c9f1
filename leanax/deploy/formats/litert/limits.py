"""Limits of LiteRT's kernels and files for layers that they have."""

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir

BYTES = 2**31 - 2**20  # of constants: a flatbuffer's offsets have 31 bits
RATIO = 256.0  # XNNPACK's multipliers are smaller; its sums overflow beyond


def check_size(tensors: dict[str, ir.Tensor]) -> None:
  """Refuses constants that do not fit into one file."""
  size = sum(tensor.data.nbytes for tensor in tensors.values() if tensor.data is not None)
  if size > BYTES:
    raise UserError(f"the network has {size:,} bytes of constants; a .tflite file holds at most {BYTES:,}")


def check_scales(layer: ir.Layer, tensors: dict[str, ir.Tensor]) -> None:
  """Refuses a layer of integers whose result has a far smaller step than what it is computed in."""
  made, read = tensors[layer.output], [tensors[name] for name in layer.inputs]
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
