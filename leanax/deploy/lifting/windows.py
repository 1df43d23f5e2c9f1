"""Windows over images and reductions over axes: pools, means, sums, largest numbers."""

from typing import Any

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.graph.program import Node

_LONGER = {"reduce_max": "max", "reduce_min": "min", "reduce_prod": "prod", "reduce_or": "any", "reduce_and": "all"}


def window(lifter: Lifter, node: Node) -> None:
  """Starts a pool; an average is a sum still to be divided. Sequences (N, L, C) are images of height 1."""
  traced, params, end = lifter.traced, node.params, node.outputs[0]
  x = lifter.finished(lifter.operand(node), node)
  window, strides, padding = (tuple(params[key]) for key in ("window_dimensions", "window_strides", "padding"))
  flat = len(window) == 3
  if flat:
    window, strides, padding = _raised(window, 1), _raised(strides, 1), _raised(padding, (0, 0))
  if len(window) != 4 or any(n != 1 for spec in (window, strides) for n in (spec[0], spec[3])):
    raise traced.refuse(node, "a pool's images must be (N, H, W, C), or sequences (N, L, C)")
  if any(d != 1 for key in ("base_dilation", "window_dilation") for d in params[key]):
    raise traced.refuse(node, "a pool cannot be dilated")
  if any(any(padding[axis]) for axis in (0, 3)):
    raise traced.refuse(node, "only height and width of a pool can be padded")
  fields = {"window": tuple(window[1:3]), "strides": tuple(strides[1:3]), "padding": tuple(map(tuple, padding[1:3]))}
  kind = ir.MaxPool if node.primitive == "reduce_window_max" else ir.AvgPool
  share, channels = None if kind is ir.MaxPool else int(np.prod(window)), traced.aval(x).shape[-1]
  undivided = None if share is None else lambda draft: _window_sum(draft, channels)
  shape = lifter.shape(end)
  if flat:
    x = lifter.shaped(x, _raised(lifter.shape(x), 1), node)
  name = (traced.site(node) or "") if kind is ir.MaxPool else ""
  draft = Draft(kind, name, (x,), end, node, share=share, undivided=undivided, fields=fields)
  lifter.start_linked(draft, _raised(shape, 1) if flat else shape, shape, range(len(shape)))


def _raised(numbers: tuple[Any, ...], height: Any) -> tuple[Any, ...]:
  """Returns numbers for each axis of sequences as those of images."""
  return numbers[0], height, *numbers[1:]


def _window_sum(draft: Draft, channels: int) -> None:
  """Turns an average pool into a sum: a depthwise convolution with ones."""
  height, width = draft.fields.pop("window")
  draft.kind, draft.kernel = ir.Conv2D, np.ones((height, width, 1, channels), np.float32)
  draft.fields["groups"] = channels


def total(lifter: Lifter, node: Node) -> None:
  """Starts a mean, still to be divided; undivided it is a sum."""
  traced = lifter.traced
  x = lifter.finished(lifter.operand(node), node)
  aval, axes = traced.aval(x), _axes(lifter, node)
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
  x, axes = lifter.finished(lifter.operand(node), node), _axes(lifter, node)
  fields = {"operation": _LONGER[node.primitive], "axes": axes, "keep_dims": False}
  lifter.start(Draft(ir.Reduce, "", (x,), node.outputs[0], node, fields=fields))


def _axes(lifter: Lifter, node: Node) -> tuple[int, ...]:
  axes = tuple(sorted(map(int, node.params["axes"])))
  if 0 in axes:
    raise lifter.traced.refuse(node, "it mixes the examples of a batch")
  return axes


TABLE = {
  "reduce_window_max": window,
  "reduce_window_sum": window,
  "reduce_sum": total,
  **dict.fromkeys(_LONGER, reduce),
}
