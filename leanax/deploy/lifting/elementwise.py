"""Equations of numbers at the same place: sums, products, ReLU, and the constants that join the layer before them."""

import functools
from collections.abc import Sequence

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.deploy.lifting.views import Affine, Link
from leanax.graph.program import Node


def channels(constant: np.ndarray, channels: int) -> np.ndarray | None:
  """Returns a constant as one number per channel, or None if it is not constant along the other axes."""
  rows = np.broadcast_to(constant, (*constant.shape[:-1], channels)) if constant.ndim else np.full(channels, constant)
  rows = rows.reshape(-1, channels).astype(np.float32)
  return rows[0] if np.array_equal(rows, np.broadcast_to(rows[0], rows.shape), equal_nan=True) else None


def compact(constant: np.ndarray) -> np.ndarray:
  """Returns a constant with length 1 along the axes on which it does not depend, and without the first such axes."""
  for axis in range(constant.ndim):
    first = constant.take([0], axis) if constant.shape[axis] > 1 else constant
    if np.array_equal(constant, np.broadcast_to(first, constant.shape), equal_nan=constant.dtype.kind == "f"):
      constant = first
  while constant.ndim and constant.shape[0] == 1:
    constant = constant[0, ...]  # an array still
  return constant


def _constant(lifter: Lifter, node: Node) -> tuple[int, np.ndarray] | None:
  """Returns the number of the operand that depends on the input and the other's value, compact; None without one."""
  found = lifter.constants(node)
  if found is None:
    return None
  made = lifter.traced.aval(node.outputs[0])
  number = lifter.operand(node, found[0])
  return found[0], known(lifter, node, found[1], [lifter.shape(number)]).astype(made.dtype)


def known(lifter: Lifter, node: Node, constant: np.ndarray, others: Sequence[Sequence[int]]) -> np.ndarray:
  """Returns a constant operand, compact, that still spreads the other operands, of these shapes, as the equation does.

  Raises:
    UserError: it has other numbers for each example of the batch.
  """
  made, constant = lifter.shape(node.outputs[0]), compact(constant)
  if constant.ndim == len(made):
    raise lifter.traced.refuse(node, "a constant has other numbers for each example of the batch")
  alone = np.broadcast_shapes(*others, constant.shape)
  if alone == made:
    return constant
  wide = tuple(size if size != own else 1 for size, own in zip(made[1:], alone[1:], strict=True))
  return np.broadcast_to(constant, np.broadcast_shapes(constant.shape, wide))


def largest(lifter: Lifter, node: Node) -> None:
  """Adds a ReLU to the layer before it, or starts one."""
  found = lifter.constants(node)
  if found is None or np.any(found[1] != 0):
    pair(lifter, node, "max")
    return
  number = lifter.operand(node, found[0])
  draft = lifter.open(number, ir.WEIGHTED, ir.Add)
  if draft is not None:
    draft.relu = True
    lifter.extend(draft, node)
    return
  pool = lifter.open(number, ir.MaxPool)
  before = None
  if pool is not None and lifter.read(pool) not in lifter.traced.views:  # others may read what it would be a view of
    before = lifter.open(lifter.read(pool), ir.WEIGHTED, ir.Add)
  if pool is not None and before is not None:
    before.relu = before.early = pool.positive = True
    lifter.extend(pool, node)
    return
  rectified = lifter.ends.get(lifter.behind(number))
  if rectified is not None and (rectified.relu or rectified.kind is ir.Relu) and lifter.sole(number):
    lifter.extend(rectified, node)
    return
  lifter.start_elements(Draft(ir.Relu, "", (number,), node.outputs[0], node), node)


def pair(lifter: Lifter, node: Node, operation: str) -> None:
  """Starts an operation of two activations, or of one and a constant; equal shapes are added by a layer of its own."""
  traced, end, name = lifter.traced, node.outputs[0], lifter.traced.site(node) or ""
  if operation in ("div", "pow") and not np.issubdtype(traced.aval(end).dtype, np.floating):
    raise traced.refuse(node, f"it makes {traced.aval(end).dtype}; lift a float32 function")
  found = _constant(lifter, node)
  if found is None:
    inputs = tuple(_unspread(lifter, node))
    if operation == "add" and lifter.shape(inputs[0]) == lifter.shape(inputs[1]):
      lifter.start_elements(Draft(ir.Add, name, inputs, end, node), node)
      return
  else:
    place, constant = found
    x = lifter.operand(node, place)
    inputs = (x, constant) if place == 0 else (constant, x)
  draft = Draft(ir.Binary, name, inputs, end, node, fields={"operation": operation}, positive=operation == "pow")
  lifter.start_elements(draft, node)


def _unspread(lifter: Lifter, node: Node) -> list[int]:
  """Returns the numbers of the operands, before they were spread where the layer itself spreads them."""
  numbers = [lifter.number(n) for n in lifter.traced.data(node)]
  for place, number in enumerate(numbers):
    source = lifter.spread.get(number, number)
    shapes = [lifter.shape(source), lifter.shape(numbers[1 - place])]
    if np.broadcast_shapes(*shapes) == lifter.shape(node.outputs[0]):
      numbers[place] = source
  return numbers


def add(lifter: Lifter, node: Node, sign: int = 1) -> None:
  """Adds a constant to the bias of the layer before it, or to what is known of a value, or two activations."""
  found = _constant(lifter, node)
  if found is None or not _float(lifter, node):
    pair(lifter, node, "add" if sign > 0 else "sub")
    return
  place, constant = found
  number = lifter.operand(node, place)
  back = sign < 0 and place == 1  # constant - x
  draft = lifter.open(number, ir.WEIGHTED)
  if draft is not None and _rounded(lifter, draft):
    draft = None
  bias = None if draft is None else _of_channels(lifter, number, draft, constant)
  if draft is not None and bias is not None and (lifter.foldable or not back):
    assert draft.kernel is not None
    if back:
      draft.kernel, draft.bias = -draft.kernel, None if draft.bias is None else -draft.bias
    bias = -bias if sign < 0 and not back else bias
    draft.bias = bias if draft.bias is None else draft.bias + bias
    lifter.extend(draft, node)
  else:
    wide = constant.astype(np.float64)
    _affine(lifter, node, number, np.array(-1.0) if back else None, wide if sign > 0 or back else -wide)


def scale(lifter: Lifter, node: Node) -> None:
  """Ends a mean, multiplies the weights of the layer before it or what is known of a value, or two activations."""
  traced, operation = lifter.traced, node.primitive
  found = _constant(lifter, node)
  if found is None or not _float(lifter, node) or (operation == "div" and found[0] == 1):
    pair(lifter, node, operation)
    return
  place, constant = found
  number = lifter.operand(node, place)
  draft = lifter.open(number, ir.Mean, ir.AvgPool, ir.Reduce)
  if draft is not None and draft.share is not None and _divides(operation, constant, draft.share):
    draft.share, draft.name = None, traced.site(node) or ""
    lifter.extend(draft, node)
    return
  draft = lifter.open(number, ir.WEIGHTED)
  if draft is not None and _rounded(lifter, draft) and not traced.leaves(node):
    draft = None  # a factor of variables is a norm, which is to be folded before grids are made
  factor = None if draft is None else _of_channels(lifter, number, draft, constant)
  if draft is not None and factor is not None:
    if not lifter.foldable:
      what = "a batch norm" if traced.in_norm(node) else "a factor"
      how = "graph.fold_batch_norms" if traced.leaves(node) else "multiply the kernel and the bias by it"
      raise traced.refuse(node, f"{what} must be folded into the weights before grids are made: {how}")
    assert draft.kernel is not None
    factor = 1 / factor if operation == "div" else factor
    draft.kernel = draft.kernel * factor
    draft.bias = None if draft.bias is None else draft.bias * factor
    lifter.extend(draft, node)
  elif operation == "div" and not (np.isfinite(constant) & (constant != 0)).all():
    pair(lifter, node, "div")
  else:
    wide = constant.astype(np.float64)
    _affine(lifter, node, number, 1 / wide if operation == "div" else wide, None)


def _divides(operation: str, constant: np.ndarray, count: int) -> bool:
  return np.allclose(constant, count if operation == "div" else 1 / count, rtol=1e-6)


def _rounded(lifter: Lifter, draft: Draft) -> bool:
  """Returns whether a simulation rounds what a layer makes so far, so that it can take in nothing more."""
  return not lifter.foldable and lifter.traced.tensor(draft.end) is not None


def _float(lifter: Lifter, node: Node) -> bool:
  return np.issubdtype(lifter.traced.aval(node.outputs[0]).dtype, np.floating)


def _of_channels(lifter: Lifter, number: int, draft: Draft, constant: np.ndarray) -> np.ndarray | None:
  """Returns a constant that meets a value as one number for each output channel of the layer behind it, or None."""
  assert draft.kernel is not None
  number, made = lifter.number(number), lifter.shape(number)
  if np.broadcast_shapes(constant.shape, made) != made:
    return None  # the value is spread by it
  if number in lifter.links:
    constant = lifter.links[number].back(lifter.shape(draft.end))(np.broadcast_to(constant, made))
  return channels(constant, draft.kernel.shape[-1])


def _affine(lifter: Lifter, node: Node, number: int, factor: np.ndarray | None, offset: np.ndarray | None) -> None:
  """Notes that a value is another one times a constant and one more added, after what is known of that one."""
  traced, number, end = lifter.traced, lifter.number(number), node.outputs[0]
  sole, rounded = lifter.sole(number), not lifter.foldable and traced.tensor(number) is not None
  link, shape = lifter.links.get(number), lifter.shape(number)
  if link is not None and lifter.turn(number) is not None and lifter.shape(end) == shape:
    back, rank = link.back(link.shape), len(shape)
    factor, offset = (None if one is None else _turned(one, link, rank) for one in (factor, offset))
    number, end = link.source, traced.view(end, link.shape, back)
    lifter.links[node.outputs[0]] = link._replace(source=end, parent=end)
  before = lifter.affine.get(number)
  if before is not None and number not in lifter.ends and sole and not rounded:
    x, times, plus = before
    pairs = [(times, factor), (plus, factor), (plus, offset)]
    if all(a is None or b is None or np.size(a * b) <= max(np.size(a), np.size(b)) for a, b in pairs):
      plus = plus if factor is None or plus is None else plus * factor
      times = factor if times is None else times if factor is None else times * factor
      offset = plus if offset is None else offset if plus is None else plus + offset
      lifter.affine[end] = Affine(x, times, offset)
      return
  lifter.affine[end] = Affine(lifter.finished(number, node), factor, offset)


def _turned(constant: np.ndarray, link: Link, rank: int) -> np.ndarray:
  """Returns a constant that meets a linked value as it meets what that is linked to."""
  whole = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
  return compact(whole.transpose(np.argsort(link.permutation)))


TABLE = {
  "add": add,
  "add_any": add,
  "sub": functools.partial(add, sign=-1),
  "mul": scale,
  "div": scale,
  "max": largest,
  "min": functools.partial(pair, operation="min"),
  "pow": functools.partial(pair, operation="pow"),
}
