"""Windows over images and sums over axes: pools and means."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.graph.program import Node


def window(lifter: Lifter, node: Node) -> None:
  """Starts a pool; an average is a sum still to be divided."""
  traced, params = lifter.traced, node.params
  x = lifter.finished(lifter.operand(node), node)
  window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
  if len(window) != 4 or any(n != 1 for spec in (window, strides) for n in (spec[0], spec[3])):
    raise traced.refuse(node, "a pool's images must be (N, H, W, C)")
  if any(d != 1 for key in ("base_dilation", "window_dilation") for d in params[key]):
    raise traced.refuse(node, "a pool cannot be dilated")
  fields = {"window": tuple(window[1:3]), "strides": tuple(strides[1:3]), "padding": tuple(map(tuple, padding[1:3]))}
  if node.primitive == "reduce_window_max":
    draft = Draft(ir.MaxPool, traced.site(node) or "", (x,), node.outputs[0], node, fields=fields)
  else:
    share = int(np.prod(window))
    draft = Draft(ir.AvgPool, "", (x,), node.outputs[0], node, share=share, fields=fields)
  lifter.start(draft)


def total(lifter: Lifter, node: Node) -> None:
  """Starts a mean over height and width, still to be divided."""
  x = lifter.finished(lifter.operand(node), node)
  shape = lifter.traced.aval(x).shape
  if len(shape) != 4 or tuple(node.params["axes"]) != (1, 2):
    raise lifter.traced.refuse(node, "only the mean over height and width of (N, H, W, C) is a layer")
  fields = {"keep_dims": False}
  share = int(shape[1] * shape[2])
  lifter.start(Draft(ir.Mean, "", (x,), node.outputs[0], node, share=share, fields=fields))


TABLE = {"reduce_window_max": window, "reduce_window_sum": window, "reduce_sum": total}
