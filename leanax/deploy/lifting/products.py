"""Products of matrices: with a kernel a dense layer, of two values that depend on the input a layer of their own."""

from typing import Any, NamedTuple

import numpy as np

from leanax import graph
from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.deploy.lifting.views import composed, ordered
from leanax.graph.program import Node

MOST = 4  # axes of a dense layer's input between examples and features; XNNPACK takes 6 in all


class _Operand(NamedTuple):
  """An operand of a dot_general.

  Attributes:
    value: the number of a value that depends on the input, or a constant.
    shape: its shape.
    batch: its axis of examples; None of a constant.
    heads: other axes that lie beside the other operand's.
    free: axes of its own, without that of examples.
    summed: axes that are summed over.
    place: 0 or 1.
  """

  value: int | np.ndarray
  shape: tuple[int, ...]
  batch: int | None
  heads: tuple[int, ...]
  free: tuple[int, ...]
  summed: tuple[int, ...]
  place: int

  def order(self, transposed: bool = True) -> tuple[int, ...]:
    """Returns the axes in the order of (examples, heads, free, summed), or with the last two changed."""
    last = self.free + self.summed if transposed else self.summed + self.free
    return (*(() if self.batch is None else (self.batch,)), *self.heads, *last)

  def sizes(self, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(self.shape[axis] for axis in axes)

  def size(self, axes: tuple[int, ...]) -> int:
    return int(np.prod(self.sizes(axes), dtype=int))


def dot(lifter: Lifter, node: Node) -> None:
  """Starts a dense layer, or a product of matrices where both operands, or a kernel for each head, are read."""
  first, second = operands = _operands(lifter, node)
  if isinstance(first.value, np.ndarray):
    first, second = second, first
  if isinstance(second.value, int) and _swaps(lifter, first, second, node):
    first, second = second, first
  made = [_label(operands[0], axis) for axis in _batches(node)[0]]
  made += [_label(one, axis) for one in operands for axis in sorted({*one.free, *_own(one, node)})]
  if isinstance(second.value, np.ndarray) and not second.heads:
    _dense(lifter, node, first, second, made)
  else:
    _matmul(lifter, node, first, second, made)


def _swaps(lifter: Lifter, first: _Operand, second: _Operand, node: Node) -> bool:
  """Returns whether the second of two activations is to be the first: where a simulation has it so, or less moves."""
  site = lifter.traced.graph.analysis.at.get(node.index)
  if not lifter.foldable and site is not None:
    return graph.second_factor(site.op, lifter.traced.bounded) != second.place
  return _moves(lifter, second, first, node) < _moves(lifter, first, second, node)


def _batches(node: Node) -> Any:
  return node.params["dimension_numbers"][1]


def _own(one: _Operand, node: Node) -> set[int]:
  """Returns the axis of examples if the other operand does not have it."""
  return set() if one.batch is None else {one.batch} - set(_batches(node)[one.place])


def _label(one: _Operand, axis: int) -> Any:
  """Returns what an axis of the result is: "examples", a head, or an operand's own."""
  if axis == one.batch:
    return "examples"
  return ("head", one.heads.index(axis)) if axis in one.heads else (one.place, axis)


def _operands(lifter: Lifter, node: Node) -> tuple[_Operand, _Operand]:
  """Returns the operands.

  Raises:
    UserError: examples are summed over, or meet those of the other operand.
  """
  traced, (summed, batches) = lifter.traced, node.params["dimension_numbers"]
  values = [lifter.number(traced.graph.resolve(r)) if traced.is_data(r) else traced.constant(r) for r in node.inputs]
  found = []
  shared = [place for place in (0, 1) if isinstance(values[place], int)]
  first = [_examples(lifter, value) if isinstance(value, int) else None for value in values]
  if len(shared) == 1 and first[shared[0]] in batches[shared[0]]:  # a constant that is repeated for each example
    other = 1 - shared[0]
    constant, axis = values[other], int(batches[other][batches[shared[0]].index(first[shared[0]])])
    assert isinstance(constant, np.ndarray)
    values[other], first[other] = _alike(lifter, node, constant, axis), axis
  paired = None not in first
  for place, value in enumerate(values):
    batch = first[place]
    shape = lifter.shape(value) if isinstance(value, int) else value.shape
    beside = tuple(int(axis) for axis in batches[place])
    ours = tuple(int(axis) for axis in summed[place])
    if batch is not None and (batch in ours or (batch in beside) != paired):
      raise _mixed(lifter, node)
    heads = tuple(axis for axis in beside if axis != batch)
    free = tuple(axis for axis in range(len(shape)) if axis not in (*ours, *beside, batch))
    found.append(_Operand(value, shape, batch, heads, free, ours, place))
  if paired and batches[0].index(first[0]) != batches[1].index(first[1]):
    raise _mixed(lifter, node)
  # Summed axes in the order in which they lie in the first operand that depends on the input: fewer must move.
  main = found[shared[0]]
  by = np.argsort(main.summed)
  left, right = (one._replace(summed=tuple(one.summed[i] for i in by)) for one in found)
  return left, right


def _alike(lifter: Lifter, node: Node, constant: np.ndarray, axis: int) -> np.ndarray:
  """Returns a constant with one entry along its axis of examples."""
  return np.moveaxis(lifter.per_example(np.moveaxis(constant, axis, 0), node), 0, axis)


def _mixed(lifter: Lifter, node: Node) -> UserError:
  return lifter.traced.refuse(node, "it mixes the examples of a batch; both operands depend on the input")


def _examples(lifter: Lifter, number: int) -> int:
  """Returns the axis of examples of a value."""
  return lifter.links[number].permutation.index(0) if number in lifter.links else 0


def _moves(lifter: Lifter, first: _Operand, second: _Operand, node: Node) -> int:
  """Returns how many of two operands must be transposed."""
  one = not _lies(lifter, first, first.order(), node)
  return one + (not any(_lies(lifter, second, second.order(turned), node) for turned in (True, False)))


def _lies(lifter: Lifter, one: _Operand, order: tuple[int, ...], node: Node) -> bool:
  """Returns whether an operand's axes have that order already."""
  if isinstance(one.value, np.ndarray):
    return True
  return ordered(composed(lifter.origin(one.value, node)[1], order))


def _dense(lifter: Lifter, node: Node, x: _Operand, kernel: _Operand, made: list[Any]) -> None:
  """Starts a dense layer of (N, ..., I) by (I, O)."""
  assert isinstance(kernel.value, np.ndarray) and x.batch is not None
  inside, outside, free = x.size(x.summed), kernel.size(kernel.free), x.sizes(x.free)
  rows = free if len(free) <= MOST else (x.size(x.free),)
  source = _brought(lifter, node, x, x.order(), (*rows, inside))
  assert isinstance(source, int)

  def layout(operand: np.ndarray) -> np.ndarray:
    return operand.transpose(kernel.order(transposed=False)).reshape(inside, outside)

  name = lifter.traced.site(node) or ""
  draft = Draft(ir.Dense, name, (source,), node.outputs[0], node, layout(kernel.value), layout)
  axes = ["examples", *(_label(x, axis) for axis in x.free), *(_label(kernel, axis) for axis in kernel.free)]
  examples = x.shape[x.batch]
  shape = (examples, *free, *kernel.sizes(kernel.free))
  lifter.start_linked(draft, (examples, *rows, outside), shape, [axes.index(label) for label in made])


def _matmul(lifter: Lifter, node: Node, first: _Operand, second: _Operand, made: list[Any]) -> None:
  """Starts a product of matrices (N, heads, I, K) by (N, heads, K, J), or by (N, heads, J, K)."""
  assert first.batch is not None
  transposed = isinstance(second.value, int) and _lies(lifter, second, second.order(), node)
  heads = (first.size(first.heads),) if first.heads else ()
  sizes = [first.size(first.free), second.size(second.free), first.size(first.summed)]
  last = (sizes[1], sizes[2]) if transposed else (sizes[2], sizes[1])
  examples = first.shape[first.batch]
  a = _brought(lifter, node, first, first.order(), (*heads, sizes[0], sizes[2]))
  b = _brought(lifter, node, second, second.order(transposed), (*heads, *last))
  draft = Draft(ir.MatMul, "", (a, b), node.outputs[0], node, fields={"transposed": transposed})
  axes = ["examples", *(_label(first, axis) for axis in first.heads)]
  axes += [_label(one, axis) for one in (first, second) for axis in one.free]
  shape = (examples, *first.sizes(first.heads), *first.sizes(first.free), *second.sizes(second.free))
  lifter.start_linked(draft, (examples, *heads, *sizes[:2]), shape, [axes.index(label) for label in made])


def _brought(
  lifter: Lifter, node: Node, one: _Operand, order: tuple[int, ...], shape: tuple[int, ...]
) -> int | np.ndarray:
  """Returns an operand with its axes in an order and then in a shape, with the examples in front of both."""
  if isinstance(one.value, np.ndarray):
    return one.value.transpose(order).reshape(shape)
  assert one.batch is not None
  return lifter.shaped(lifter.turned(one.value, order, node), (one.shape[one.batch], *shape), node)


TABLE = {"dot_general": dot}
