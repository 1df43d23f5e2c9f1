"""Layers to LiteRT operators and tensors, in the layouts and on the grids that the file has them.

Sources: the LiteRT schema, and the 8-bit quantization specification at ai.google.dev (int8 weights per output channel
along axis 0 of a convolution or dense kernel, 3 of a depthwise one; int32 biases; affine int8 activations).

A padding that is neither VALID nor SAME becomes a PAD layer before its own. An int8 average pool is written as a
depthwise convolution with weight 1 and scale 1 / window, because AVERAGE_POOL_2D cannot change the grid: the same
numbers, exactly, with any grid behind it.
"""

from collections.abc import Callable

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.formats.litert.emit import choices, elementwise, functions, pools, shapes, transposed, weighted
from leanax.deploy.formats.litert.emit.operators import Plan, Written
from leanax.deploy.formats.litert.kernels import with_kernels
from leanax.deploy.formats.litert.limits import check_axes, check_kernel, check_scales, check_size
from leanax.deploy.formats.litert.weights import stored

__all__ = ["Plan", "Written", "planned"]


def planned(network: ir.Network, weights: str = "", sparse: float | None = None) -> Plan:
  """Returns the operators and tensors of a network, with the weights of a float one as `litert` has it.

  Raises:
    UserError: an unsound network, or a layer, a ratio of scales or a size that LiteRT lacks.
  """
  if (weights or sparse is not None) and network.quantized:
    given = f"weights={weights!r}" if weights else f"sparse={sparse}"
    raise UserError(f"{given} is for float networks; this one has int8 layers, of trained codes")
  # A sound network: every tensor is made before it is read, with the shape and grid that its layer gives it.
  network = with_kernels(ir.check(network))
  # Activations keep their names, shapes and grids; constants are added by the layers that read them, in their layout.
  plan = Plan([], {name: tensor for name, tensor in network.tensors.items() if tensor.data is None}, {})
  # One operator per layer; a padding that the operator lacks becomes one before it.
  for layer in network.layers:
    if type(layer) not in _EMIT:
      known = ", ".join(kind.__name__ for kind in _EMIT)
      raise UserError(f"layer {layer.name!r} is a {type(layer).__name__}, which LiteRT lacks; expected one of {known}")
    check_axes(layer, network.tensors)
    check_kernel(layer, network.tensors)
    check_scales(layer, network.tensors)  # before the runtime sees them: it ends the process at ratios it cannot hold
    _EMIT[type(layer)](plan, layer, network.tensors)
  plan = stored(plan, weights, sparse)
  check_size(plan.tensors)
  return plan


_EMIT: dict[type, Callable[..., None]] = {
  **weighted.TABLE,
  **pools.TABLE,
  **elementwise.TABLE,
  **functions.TABLE,
  **shapes.TABLE,
  **transposed.TABLE,
  **choices.TABLE,
}
