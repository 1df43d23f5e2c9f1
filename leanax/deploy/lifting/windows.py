"""Windows over images and reductions over axes: pools, means, sums, largest numbers."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.graph.program import Node

_LONGER = {"reduce_max": "max", "reduce_min": "min", "reduce_prod": "prod", "reduce_or": "any", "reduce_and": "all"}


def window(lifter: Lifter, node: Node) -> None:
  """Starts a pool; an average is a sum still to be divided. Sequences (N, L, C) are images of height 1."""
  traced, params, end = lifter.traced, node.params, node.outputs[0]
  keys = ("window_dimensions", "window_strides", "padding")
  rows = list(zip(*(params[key] for key in keys), strict=True))  # of each axis: window, stride, padding
  rank, still = len(rows), [axis for axis, row in enumerate(rows) if (*row[:2], *row[2]) == (1, 1, 0, 0)]
  if rank not in (3, 4) or 0 not in still or not {1, rank - 1} & set(still):
    raise traced.refuse(
      node, "a pool's images must be (N, H, W, C) or (N, C, H, W), or sequences (N, L, C) or (N, C, L)"
    )
  if any(d != 1 for key in ("base_dilation", "window_dilation") for d in params[key]):
    raise traced.refuse(node, "a pool cannot be dilated")
  depth = rank - 1 if rank - 1 in still else 1
  order = (0, *(axis for axis in range(1, rank) if axis != depth), depth)  # channels last
  x = lifter.finished(lifter.turned(lifter.number(lifter.operand(node)), order, node), node)
  shape = tuple(lifter.shape(end)[axis] for axis in order)
  windows, strides, padding = zip(*([(1, 1, (0, 0))] * (4 - rank) + [rows[axis] for axis in order[1:-1]]), strict=True)
  fields = {"window": windows, "strides": strides, "padding": tuple(map(tuple, padding))}
  kind = ir.MaxPool if node.primitive == "reduce_window_max" else ir.AvgPool
  share, channels = None if kind is ir.MaxPool else int(np.prod(windows)), shape[-1]
  undivided = None if share is None else lambda draft: _window_sum(draft, channels)
  own = shape
  if rank == 3:
    x, own = lifter.shaped(x, _raised(lifter.shape(x)), node), _raised(shape)
  name = (traced.site(node) or "") if kind is ir.MaxPool else ""
  draft = Draft(kind, name, (x,), end, node, share=share, undivided=undivided, fields=fields)
  lifter.start_linked(draft, own, shape, np.argsort(order).tolist())


def _raised(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape of sequences as images of height 1."""
  return shape[0], 1, *shape[1:]


def _window_sum(draft: Draft, channels: int) -> None:
  """Turns an average pool into a sum: a depthwise convolution with ones."""
  height, width = draft.fields.pop("window")
  draft.kind, draft.kernel = ir.Conv2D, np.ones((height, width, 1, channels), np.float32)
  draft.fields["groups"] = channels


def total(lifter: Lifter, node: Node) -> None:
  """Starts a mean, still to be divided; undivided it is a sum."""
  traced = lifter.traced
  x, axes = _reduced(lifter, node)
  aval = traced.aval(x)
  share = int(np.prod([aval.shape[axis] for axis in axes]))
  if np.dtype(aval.dtype).kind != "f":
    fields = {"operation": "sum", "axes": axes, "keep_dims": False}
    lifter.start(Draft(ir.Reduce, "", (x,), node.outputs[0], node, fields=fields))
    return
  kind, fields = ir.Reduce, {"operation": "mean", "axes": axes, "keep_dims": False}
  if len(aval.shape) == 4 and axes == (1, 2):  # integers have a kernel for this one
    kind, fields = ir.Mean, {"keep_dims": False}
  lifter.start(Draft(kind, "", (x,), node.outputs[0], node, share=share, undivided=_sum, fields=fields))


def _sum(draft: Draft) -> None:
  """Turns a mean into a sum."""
  draft.fields = {"operation": "sum", "axes": draft.fields.get("axes", (1, 2)), "keep_dims": draft.fields["keep_dims"]}
  draft.kind = ir.Reduce


def reduce(lifter: Lifter, node: Node) -> None:
  """Starts the largest, the least or the product of numbers along axes."""
  x, axes = _reduced(lifter, node)
  fields = {"operation": _LONGER[node.primitive], "axes": axes, "keep_dims": False}
  lifter.start(Draft(ir.Reduce, "", (x,), node.outputs[0], node, fields=fields))


def _reduced(lifter: Lifter, node: Node) -> tuple[int, tuple[int, ...]]:
  """Returns the number of the value that is reduced and its axes, before they changed places where that is the same.

  Raises:
    UserError: one is the batch's.
  """
  number, axes = lifter.number(lifter.operand(node)), sorted(map(int, node.params["axes"]))
  source, order = lifter.origin(number, node)
  left = [place for axis, place in enumerate(order) if axis not in axes]
  if left == sorted(left):
    number, axes = source, sorted(order[axis] for axis in axes)
  if 0 in axes:
    raise lifter.traced.refuse(node, "it mixes the examples of a batch")
  return lifter.finished(number, node), tuple(axes)


TABLE = {
  "reduce_window_max": window,
  "reduce_window_sum": window,
  "reduce_sum": total,
  **dict.fromkeys(_LONGER, reduce),
}
