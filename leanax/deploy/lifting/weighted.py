"""Products with constant kernels: dense layers and convolutions."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.graph.program import Node


def dot(lifter: Lifter, node: Node) -> None:
  """Starts a dense layer."""
  traced = lifter.traced
  x = lifter.operand(node)
  if traced.is_data(node.inputs[1]):
    raise traced.refuse(node, "both operands depend on the input")
  (lhs, rhs), batch = node.params["dimension_numbers"]
  shape, kernel = traced.aval(x).shape, traced.constant(node.inputs[1])
  if len(shape) != 2 or tuple(lhs) != (1,) or kernel.ndim != 2 or any(map(len, batch)):
    raise traced.refuse(node, f"a dense layer is (N, I) by (I, O), not {tuple(shape)} by {kernel.shape}")
  kernel = kernel if tuple(rhs) == (0,) else kernel.T
  x = lifter.finished(x, node)
  lifter.start(Draft(ir.Dense, traced.site(node) or "", (x,), node.outputs[0], node, kernel))


def conv(lifter: Lifter, node: Node) -> None:
  """Starts a convolution; a padding before it becomes part of it."""
  traced, params = lifter.traced, node.params
  x = lifter.operand(node)
  if traced.is_data(node.inputs[1]):
    raise traced.refuse(node, "its kernel depends on the input")
  spec = params["dimension_numbers"]
  if tuple(spec.lhs_spec) != (0, 3, 1, 2) or tuple(spec.out_spec) != (0, 3, 1, 2):
    raise traced.refuse(node, "a convolution's images must be (N, H, W, C)")
  if any(d != 1 for d in params["lhs_dilation"]) or params["batch_group_count"] != 1:
    raise traced.refuse(node, "transposed convolutions have no layer here")
  out, inside, *window = spec.rhs_spec
  kernel = traced.constant(node.inputs[1]).transpose(*window, inside, out)
  padding = np.array(params["padding"])
  source = lifter.number(x)
  if source in lifter.pads:
    source, around = lifter.pads[source]
    padding = padding + np.array(around)
  if (padding < 0).any():
    raise traced.refuse(node, f"its padding {params['padding']} is negative")
  fields = {
    "strides": tuple(map(int, params["window_strides"])),
    "padding": tuple((int(low), int(high)) for low, high in padding),
    "dilation": tuple(map(int, params["rhs_dilation"])),
    "groups": int(params["feature_group_count"]),
  }
  source = lifter.finished(source, node)
  name = traced.site(node) or ""
  lifter.start(Draft(ir.Conv2D, name, (source,), node.outputs[0], node, kernel, fields=fields))


TABLE = {"dot_general": dot, "conv_general_dilated": conv}
