"""Layers that move numbers without changing them as LiteRT operators."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.formats.litert.emit.operators import Plan, Written, keep


def _reshape(plan: Plan, layer: ir.Reshape, tensors: dict[str, ir.Tensor]) -> None:
  shape = np.array([-1, *tensors[layer.output].shape[1:]], np.int32)
  named = keep(plan, ir.Tensor(f"{layer.name}:shape", shape.shape, "int32", data=shape))
  plan.operators.append(
    Written("RESHAPE", (layer.inputs[0], named), layer.output, "ReshapeOptions", {"NewShape": shape})
  )


def _transpose(plan: Plan, layer: ir.Transpose, tensors: dict[str, ir.Tensor]) -> None:
  del tensors
  order = np.array(layer.permutation, np.int32)
  named = keep(plan, ir.Tensor(f"{layer.name}:order", order.shape, "int32", data=order))
  version = 2 if len(order) < 5 else 4 if len(order) < 6 else 6
  plan.operators.append(Written("TRANSPOSE", (layer.inputs[0], named), layer.output, version=version))


TABLE = {ir.Reshape: _reshape, ir.Transpose: _transpose}
