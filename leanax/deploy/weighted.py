"""Equations with constants: convolutions and dense layers, and the biases and factors that join them."""

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.drafts import Draft, Lifter
from leanax.graph.program import Node


def _channels(constant: np.ndarray, channels: int) -> np.ndarray | None:
  """Returns a constant as one number per channel, or None if it is not constant along the other axes."""
  rows = np.broadcast_to(constant, (*constant.shape[:-1], channels)) if constant.ndim else np.full(channels, constant)
  rows = rows.reshape(-1, channels).astype(np.float32)
  return rows[0] if np.array_equal(rows, np.broadcast_to(rows[0], rows.shape), equal_nan=True) else None


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


def add(lifter: Lifter, node: Node, sign: int = 1) -> None:
  """Starts a sum of two activations, or adds a constant to the bias of the layer before it."""
  traced = lifter.traced
  found = lifter.constants(node)
  if found is None:
    if sign < 0:
      raise traced.refuse(node, "two activations can be added, not subtracted")
    shapes = [tuple(traced.aval(n).shape) for n in traced.data(node)]
    if len(set(shapes)) > 1:
      raise traced.refuse(node, f"the shapes {shapes[0]} and {shapes[1]} differ")
    inputs = tuple(lifter.finished(n, node) for n in traced.data(node))
    lifter.start(Draft(ir.Add, traced.site(node) or "", inputs, node.outputs[0], node))
    return
  place, constant = found
  draft = lifter.open(lifter.operand(node, place), ir.Conv2D, ir.Dense)
  if draft is None or (sign < 0 and place == 1):
    raise _misplaced(lifter, node, "a constant that is added")
  assert draft.kernel is not None
  bias = _channels(constant, draft.kernel.shape[-1])
  if bias is None:
    raise traced.refuse(node, "the constant is not one number per channel")
  bias = bias if sign > 0 else -bias
  draft.bias = bias if draft.bias is None else draft.bias + bias
  lifter.extend(draft, node)


def _misplaced(lifter: Lifter, node: Node, what: str) -> UserError:
  """Returns the error for a constant that no layer with weights takes in."""
  place = "right behind a convolution or dense layer"
  why = f"{what} can stand only {place}"
  if lifter.traced.in_norm(node):
    why = f"it is part of a batch norm that does not stand {place}, and the exported formats have no layer for it"
  return lifter.traced.refuse(node, why)


def subtract(lifter: Lifter, node: Node) -> None:
  """Subtracts a constant from the bias of the layer before it."""
  add(lifter, node, -1)


def scale(lifter: Lifter, node: Node) -> None:
  """Ends a mean, or multiplies the weights of the layer before it by a constant factor."""
  traced = lifter.traced
  found = lifter.constants(node)
  if found is None or (node.primitive == "div" and found[0] == 1):
    raise traced.refuse(node, "only a constant factor or divisor can be lifted")
  place, constant = found
  number = lifter.operand(node, place)
  draft = lifter.open(number, ir.Mean, ir.AvgPool)
  if draft is not None and draft.share is not None:
    factor = 1 / constant if node.primitive == "div" else constant
    if not np.allclose(factor, 1 / draft.share, rtol=1e-6):
      raise traced.refuse(node, f"a sum of {draft.share} terms is divided by something else")
    draft.share, draft.name = None, traced.site(node) or ""
    lifter.extend(draft, node)
    return
  draft = lifter.open(number, ir.Conv2D, ir.Dense)
  if draft is None:
    raise _misplaced(lifter, node, "a factor")
  if not lifter.foldable:
    what = "a batch norm" if traced.in_norm(node) else "a factor"
    how = "graph.fold_batch_norms" if traced.leaves(node) else "multiply the kernel and the bias by it"
    raise traced.refuse(node, f"{what} must be folded into the weights before grids are made: {how}")
  assert draft.kernel is not None
  factor = _channels(constant, draft.kernel.shape[-1])
  if factor is None:
    raise traced.refuse(node, "the factor is not one number per channel")
  factor = 1 / factor if node.primitive == "div" else factor
  draft.kernel = draft.kernel * factor
  draft.bias = None if draft.bias is None else draft.bias * factor
  lifter.extend(draft, node)
