"""Equations of numbers at the same place: sums, factors, ReLU, and the biases that join the layer before them."""

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.graph.program import Node


def channels(constant: np.ndarray, channels: int) -> np.ndarray | None:
  """Returns a constant as one number per channel, or None if it is not constant along the other axes."""
  rows = np.broadcast_to(constant, (*constant.shape[:-1], channels)) if constant.ndim else np.full(channels, constant)
  rows = rows.reshape(-1, channels).astype(np.float32)
  return rows[0] if np.array_equal(rows, np.broadcast_to(rows[0], rows.shape), equal_nan=True) else None


def largest(lifter: Lifter, node: Node) -> None:
  """Adds a ReLU to the layer before it, or starts one."""
  traced = lifter.traced
  found = lifter.constants(node)
  if found is None or np.any(found[1] != 0):
    raise traced.refuse(node, "only max(x, 0) is a layer")
  number = lifter.operand(node, found[0])
  draft = lifter.open(number, ir.Conv2D, ir.Dense, ir.Add)
  if draft is not None:
    draft.relu = True
    lifter.extend(draft, node)
    return
  pool = lifter.open(number, ir.MaxPool)
  before = None if pool is None else lifter.open(lifter.read(pool), ir.Conv2D, ir.Dense, ir.Add)
  if pool is not None and before is not None:
    before.relu = before.early = pool.positive = True
    lifter.extend(pool, node)
    return
  rectified = lifter.ends.get(lifter.number(number))
  if rectified is not None and (rectified.relu or rectified.kind is ir.Relu) and lifter.sole(number):
    lifter.extend(rectified, node)
    return
  lifter.start(Draft(ir.Relu, "", (lifter.finished(number, node),), node.outputs[0], node))


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
  bias = channels(constant, draft.kernel.shape[-1])
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
  draft = lifter.open(number, ir.Mean, ir.AvgPool, ir.Reduce, ir.Reshape)
  factor = 1 / constant if node.primitive == "div" else constant
  if draft is not None and draft.share is not None and np.allclose(factor, 1 / draft.share, rtol=1e-6):
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
  factor = channels(constant, draft.kernel.shape[-1])
  if factor is None:
    raise traced.refuse(node, "the factor is not one number per channel")
  factor = 1 / factor if node.primitive == "div" else factor
  draft.kernel = draft.kernel * factor
  draft.bias = None if draft.bias is None else draft.bias * factor
  lifter.extend(draft, node)


TABLE = {"add": add, "add_any": add, "sub": subtract, "mul": scale, "div": scale, "max": largest}
