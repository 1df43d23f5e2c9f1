"""Equations that look at values: comparisons, choices between values, indices of the largest, rows of tables."""

from collections.abc import Callable
from typing import Any

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting import picks
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.deploy.lifting.elementwise import known
from leanax.graph.program import Node

_PASSING = ("broadcast_in_dim", "reshape", "expand_dims")


def compare(lifter: Lifter, node: Node) -> None:
  """Starts a comparison of two values, or of a value and a constant."""
  fields = {"operation": node.primitive}
  lifter.start(Draft(ir.Compare, "", operands(lifter, node), node.outputs[0], node, fields=fields))


def operands(lifter: Lifter, node: Node, first: int = 0) -> tuple[int | np.ndarray, ...]:
  """Returns the operands of an equation whose layer broadcasts them: unspread where others have the whole shape."""
  traced, out = lifter.traced, lifter.shape(node.outputs[0])
  numbers = [lifter.number(traced.graph.resolve(ref)) for ref in node.inputs[first:] if traced.is_data(ref)]
  narrow = [lifter.spread.get(number, number) for number in numbers]
  constants = [traced.constant(ref) for ref in node.inputs[first:] if not traced.is_data(ref)]
  if np.broadcast_shapes(*map(lifter.shape, narrow), *(one.shape for one in constants)) != out:
    narrow[0] = numbers[0]  # nobody else has the whole shape
  shapes = [lifter.shape(number) for number in narrow]
  data = iter(narrow)
  return tuple(
    lifter.finished(next(data), node) if traced.is_data(ref) else known(lifter, node, traced.constant(ref), shapes)
    for ref in node.inputs[first:]
  )


def select(lifter: Lifter, node: Node) -> None:
  """Starts a choice between two values; one that is known is no layer."""
  traced, (which, *cases) = lifter.traced, node.inputs
  if len(cases) != 2 or traced.graph.analysis.value(which).aval.dtype != bool:
    raise traced.refuse(node, "a choice is between two values, by true and false")
  if not traced.is_data(which):
    known = traced.constant(which)
    chosen = cases[int(known.reshape(-1)[0])]
    if (known == known.reshape(-1)[0]).all() and traced.is_data(chosen):
      lifter.same[node.outputs[0]] = traced.graph.resolve(chosen)
      return
  which, on_false, on_true = operands(lifter, node)
  lifter.start(Draft(ir.Select, "", (which, on_true, on_false), node.outputs[0], node))


def logic(node_of: Callable[[Any, Any, np.ndarray, np.ndarray], tuple[Any, ...]]) -> Callable[[Lifter, Node], None]:
  """Returns what starts a choice that computes and, or, not of truth values."""

  def start(lifter: Lifter, node: Node) -> None:
    out = lifter.traced.aval(node.outputs[0])
    if out.dtype != bool:
      raise lifter.traced.refuse(node, f"it works on the bits of {out.dtype}; only truth values have a layer")
    no, yes = (np.full((1,) * len(out.shape), value) for value in (False, True))
    a, *b = operands(lifter, node)
    if isinstance(a, np.ndarray):
      (a,), b = b, [a]
    lifter.start(Draft(ir.Select, "", node_of(a, b, no, yes), node.outputs[0], node))

  return start


def largest(kind: type[ir.Layer]) -> Callable[[Lifter, Node], None]:
  """Returns what starts the index of the largest or least number along an axis."""

  def start(lifter: Lifter, node: Node) -> None:
    x, axes = lifter.finished(lifter.operand(node), node), node.params["axes"]
    if tuple(axes) == (0,):
      raise lifter.traced.refuse(node, "it compares the examples of a batch")
    lifter.start(Draft(kind, "", (x,), node.outputs[0], node, fields={"axis": int(axes[0])}))

  return start


def cumulative(lifter: Lifter, node: Node) -> None:
  """Starts a cumulative sum."""
  x, params = lifter.finished(lifter.operand(node), node), node.params
  if params["axis"] == 0:
    raise lifter.traced.refuse(node, "it mixes the examples of a batch")
  fields = {"axis": int(params["axis"]), "reverse": bool(params["reverse"])}
  lifter.start(Draft(ir.CumSum, "", (x,), node.outputs[0], node, fields=fields))


def gather(lifter: Lifter, node: Node) -> None:
  """Picks entries at known indices, or starts the look-up of rows of a constant table at indices that are data.

  Indices beyond the table are the caller's mistake: JAX makes NaN or the last row of them, and a runtime an error.
  """
  traced = lifter.traced
  if not traced.is_data(node.inputs[1]):
    return picks.by_constants(lifter, node)
  if traced.is_data(node.inputs[0]):
    raise traced.refuse(node, "its indices depend on the input, and so does what they choose from")
  if node.index not in lifter.indices:
    raise traced.refuse(node, "only whole entries along one axis of a constant can be looked up: jnp.take(table, i, 0)")
  table, indices = traced.constant(node.inputs[0]), lifter.finished(lifter.indices[node.index], node)
  lifter.start(Draft(ir.Gather, traced.site(node) or "", (table, indices), node.outputs[0], node, fields={"axis": 0}))
  return None


def find_indices(lifter: Lifter) -> None:
  """Finds the equations between indices and the look-ups that read them, such as those that count from the end."""
  traced = lifter.traced
  makers = {number: node for node in traced.nodes for number in node.outputs}
  for node in traced.nodes:
    if node.primitive != "gather" or not traced.is_data(node.inputs[1]) or traced.is_data(node.inputs[0]):
      continue
    rows = node.params["dimension_numbers"]
    table = traced.graph.analysis.value(node.inputs[0]).aval.shape
    rank = len(traced.graph.analysis.value(node.inputs[1]).aval.shape) - 1
    whole = tuple(node.params["slice_sizes"]) == (1, *table[1:])
    trailing = tuple(map(int, rows.offset_dims)) == tuple(range(rank, rank + len(table) - 1))
    if tuple(rows.start_index_map) != (0,) or tuple(rows.collapsed_slice_dims) != (0,) or not (whole and trailing):
      continue
    indices = traced.graph.resolve(node.inputs[1])
    if len(table) and indices in makers and makers[indices].primitive in _PASSING:
      lifter.skipped.add(makers[indices].index)
      indices = traced.data(makers[indices])[0]
    else:
      continue
    wrap = _wrap(lifter, makers.get(indices), makers)
    if wrap is not None:
      indices, nodes = wrap
      lifter.skipped |= nodes
    lifter.indices[node.index] = indices


def _wrap(lifter: Lifter, node: Node | None, makers: dict[int, Node]) -> tuple[int, set[int]] | None:
  """Returns i, and the equations, of select(i < 0, i, i + n), which only one look-up reads."""
  traced = lifter.traced
  if node is None or node.primitive != "select_n" or traced.uses[node.outputs[0]] != 1:
    return None
  which, plain, moved = (traced.graph.resolve(ref) for ref in node.inputs)
  below, above = makers.get(which), makers.get(moved)
  if below is None or above is None or (below.primitive, above.primitive) != ("lt", "add"):
    return None
  if traced.data(below) != [plain] or traced.data(above) != [plain] or traced.uses[which] + traced.uses[moved] != 2:
    return None
  return plain, {node.index, below.index, above.index}


TABLE = {
  **{name: compare for name in ("lt", "le", "gt", "ge", "eq", "ne")},
  "select_n": select,
  "and": logic(lambda a, b, no, yes: (a, b[0], no)),
  "or": logic(lambda a, b, no, yes: (a, yes, b[0])),
  "not": logic(lambda a, b, no, yes: (a, no, yes)),
  "argmax": largest(ir.ArgMax),
  "argmin": largest(ir.ArgMin),
  "cumsum": cumulative,
  "gather": gather,
}
