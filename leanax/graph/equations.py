"""The rules by which each plain equation links the axes of its operands and results."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core as jex

from leanax.graph import units
from leanax.graph.ops import ELEMENTWISE
from leanax.graph.program import Node, Program
from leanax.graph.reshapes import runs
from leanax.graph.units import Reason, Row, Tree, Units, product, row, unify

_PAIRWISE = frozenset(("optimization_barrier", "psum", "psum_invariant", "pmax", "pmin", "ppermute"))
_FREE = frozenset(("random_bits", "random_seed", "random_wrap", "random_unwrap", "random_fold_in"))
_ORDERLESS = frozenset(f"reduce_{kind}" for kind in ("sum", "max", "min", "prod", "and", "or"))
_NOT_OURS = ("/jax/", "/jaxlib/", "/flax/", "/numpy/", "/leanax/graph/")


class Trees:
  """The trees of values' axes, by the value's number.

  Attributes:
    lines: the lines of the user's code of the equations around the present one, outermost first.
  """

  def __init__(self, program: Program):
    self.program = program
    self.trees: dict[int, list[Tree]] = {}
    self.lines: list[str] = []
    self._reason: tuple[Node | None, Reason] = None, Reason("", "")

  def of(self, ref: Any) -> list[Tree]:
    """Returns the trees of a value's axes."""
    if isinstance(ref, jex.Literal):
      return [Units(n) for n in getattr(ref.aval, "shape", ())]
    return self.trees[ref]

  def new(self, number: int) -> list[Tree]:
    """Returns trees of which nothing is known yet, for a result."""
    if number not in self.trees:
      self.trees[number] = [Units(n) for n in getattr(self.program.avals[number], "shape", ())]
    return self.trees[number]

  def reason(self, node: Node) -> Reason:
    """Returns an equation's name, with the line of the user's code that it comes from where that is known."""
    if self._reason[0] is not node:
      where = line(node) or next((found for found in reversed(self.lines) if found), "")
      self._reason = node, Reason(node.primitive, f"{node.primitive!r}{where}")
    return self._reason[1]

  def same(self, node: Node, a: Any, b: Any, skip: Sequence[int] = ()) -> None:
    """Unifies the axes of two values place by place."""
    for axis, (one, other) in enumerate(zip(self.of(a), self.of(b))):
      if axis not in skip:
        unify(one, other, self.reason(node))

  def block(self, node: Node, trees: Sequence[Tree]) -> None:
    """Says that these axes cannot be followed through a node."""
    for tree in trees:
      units.block(tree, self.reason(node))

  def join(self, node: Node, whole: Tree, parts: Sequence[Tree]) -> None:
    """Says that an axis is others one after the other."""
    made = row(parts)
    unify(whole, made, self.reason(node))
    if isinstance(made, Row):
      units.join(made, node.primitive)


def link(links: Trees, node: Node) -> None:
  """Links the axes of an equation's operands and results; one that holds other equations is not looked into."""
  if node.form:
    _unknown(links, node)
  elif node.primitive in ELEMENTWISE:
    for ref in node.inputs:
      links.same(node, ref, node.outputs[0])
  elif node.primitive in _PAIRWISE:
    for ref, number in zip(node.inputs, node.outputs, strict=True):
      links.same(node, ref, number)
  elif node.primitive in _ORDERLESS:
    _reduce(links, node)
  elif node.primitive not in _FREE:
    _LINKS.get(node.primitive, _unknown)(links, node)


def line(node: Node) -> str:
  """Returns the innermost line of the user's code that an equation comes from, or ""."""
  trace = getattr(getattr(node.eqn, "source_info", None), "traceback", None)
  for frame in getattr(trace, "frames", ()):
    if not any(part in frame.file_name for part in _NOT_OURS):
      return f" ({frame.file_name.rpartition('/')[2]}, line {frame.line_num})"
  return ""


def _unknown(links: Trees, node: Node) -> None:
  for ref in (*node.inputs, *node.outputs):
    links.block(node, links.of(ref))


def _reduce(links: Trees, node: Node) -> None:
  gone = node.params["axes"]
  for ref, number in zip(node.inputs, node.outputs):
    trees = links.of(ref)
    kept = [tree for axis, tree in enumerate(trees) if axis not in gone]
    for one, other in zip(kept, links.of(number), strict=True):
      unify(one, other, links.reason(node))
    for axis in gone:
      units.reduce(trees[axis], links.reason(node).text)


def _broadcast(links: Trees, node: Node) -> None:
  trees, result = links.of(node.inputs[0]), links.of(node.outputs[0])
  for tree, place in zip(trees, node.params["broadcast_dimensions"], strict=True):
    unify(tree, result[place], links.reason(node))


def _transpose(links: Trees, node: Node) -> None:
  trees = links.of(node.inputs[0])
  links.trees[node.outputs[0]] = [trees[axis] for axis in node.params["permutation"]]


def _reshape(links: Trees, node: Node) -> None:
  """Runs of axes with equal products are the same units; so a flattened axis is a product."""
  source, result = links.of(node.inputs[0]), links.of(node.outputs[0])
  sizes = [tuple(tree.size for tree in trees) for trees in (source, result)]
  if 0 in sizes[0]:
    return _unknown(links, node)
  if node.params.get("dimensions") is not None:
    source = [source[axis] for axis in node.params["dimensions"]]
    sizes[0] = tuple(tree.size for tree in source)
  for left, right in runs(*sizes):
    one, other = product([source[axis] for axis, _ in left]), product([result[axis] for axis, _ in right])
    unify(one, other, links.reason(node))
  return None


def _squeeze(links: Trees, node: Node) -> None:
  trees = links.of(node.inputs[0])
  links.trees[node.outputs[0]] = [t for axis, t in enumerate(trees) if axis not in node.params["dimensions"]]


def _dot(links: Trees, node: Node) -> None:
  lhs, rhs = (links.of(ref) for ref in node.inputs)
  (contract_l, contract_r), (batch_l, batch_r) = node.params["dimension_numbers"]
  for i, j in zip((*contract_l, *batch_l), (*contract_r, *batch_r), strict=True):
    unify(lhs[i], rhs[j], links.reason(node))
  free_l = [tree for i, tree in enumerate(lhs) if i not in (*contract_l, *batch_l)]
  free_r = [tree for i, tree in enumerate(rhs) if i not in (*contract_r, *batch_r)]
  links.trees[node.outputs[0]] = [*(lhs[i] for i in batch_l), *free_l, *free_r]


def _conv(links: Trees, node: Node) -> None:
  """Channels of a grouped convolution are (groups, channels of a group), of its input and of its output."""
  (lhs, rhs), out = (links.of(ref) for ref in node.inputs), links.of(node.outputs[0])
  spec, groups, reason = node.params["dimension_numbers"], node.params["feature_group_count"], links.reason(node)
  if node.params["batch_group_count"] != 1:
    return _unknown(links, node)
  unify(lhs[spec.lhs_spec[0]], out[spec.out_spec[0]], reason)
  unify(rhs[spec.rhs_spec[0]], out[spec.out_spec[1]], reason)
  links.block(node, [trees[i] for trees, s in ((lhs, spec[0]), (rhs, spec[1]), (out, spec[2])) for i in s[2:]])
  if groups == 1:
    unify(lhs[spec.lhs_spec[1]], rhs[spec.rhs_spec[1]], reason)
  else:
    group, kernels = Units(groups), rhs[spec.rhs_spec[0]]
    unify(lhs[spec.lhs_spec[1]], product([group, rhs[spec.rhs_spec[1]]]), reason)
    unify(kernels, product([group, Units(kernels.size // groups)]), reason)
  return None


def _concatenate(links: Trees, node: Node) -> None:
  axis, result = node.params["dimension"], links.of(node.outputs[0])
  for ref in node.inputs:
    links.same(node, ref, node.outputs[0], skip=(axis,))
  links.join(node, result[axis], [links.of(ref)[axis] for ref in node.inputs])


def _split(links: Trees, node: Node) -> None:
  axis = node.params["axis"]
  for number in node.outputs:
    links.same(node, node.inputs[0], number, skip=(axis,))
  links.join(node, links.of(node.inputs[0])[axis], [links.of(n)[axis] for n in node.outputs])


def _slice(links: Trees, node: Node) -> None:
  source, result = links.of(node.inputs[0]), links.of(node.outputs[0])
  starts, strides = node.params["start_indices"], node.params["strides"] or (1,) * len(source)
  for axis, (tree, part) in enumerate(zip(source, result, strict=True)):
    if strides[axis] != 1 and tree.size != part.size:
      links.block(node, [tree, part])
    else:
      after = tree.size - starts[axis] - part.size
      links.join(node, tree, [Units(starts[axis]), part, Units(after)])


def _pad(links: Trees, node: Node) -> None:
  """The padding is units of its own, all alike."""
  for tree, wide, (low, high, gap) in zip(
    links.of(node.inputs[0]), links.of(node.outputs[0]), node.params["padding_config"], strict=True
  ):
    if low < 0 or high < 0 or gap:
      links.block(node, [tree, wide])
    else:
      links.join(node, wide, [Units(low), tree, Units(high)])


def _window(links: Trees, node: Node) -> None:
  keys = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
  for axis, (tree, out) in enumerate(zip(links.of(node.inputs[0]), links.of(node.outputs[0]), strict=True)):
    if all(node.params[key] is None or node.params[key][axis] == 1 for key in keys):
      unify(tree, out, links.reason(node))
    else:
      links.block(node, [tree, out])


def _gather(links: Trees, node: Node) -> None:
  """Whole slices of a table, such as the rows of an embedding, keep their axes; those that are looked up do not."""
  numbers, sizes = node.params["dimension_numbers"], node.params["slice_sizes"]
  table, out = links.of(node.inputs[0]), links.of(node.outputs[0])
  kept = [a for a in range(len(table)) if a not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)]
  links.block(node, [tree for axis, tree in enumerate(table) if axis not in kept])
  for axis, place in zip(kept, numbers.offset_dims, strict=True):
    if sizes[axis] == table[axis].size:
      unify(table[axis], out[place], links.reason(node))
    else:
      links.block(node, [table[axis], out[place]])
  rest = [tree for place, tree in enumerate(out) if place not in numbers.offset_dims]
  for one, other in zip(links.of(node.inputs[1])[:-1], rest):
    unify(one, other, links.reason(node))


def _whole_slice(links: Trees, node: Node) -> None:
  for tree, part in zip(links.of(node.inputs[0]), links.of(node.outputs[0]), strict=True):
    if tree.size == part.size:
      unify(tree, part, links.reason(node))
    else:
      links.block(node, [tree, part])


def _all_but(key: str) -> Callable[[Trees, Node], None]:
  """Every axis goes through but those that a parameter names."""

  def link(links: Trees, node: Node) -> None:
    named = node.params[key] if isinstance(node.params[key], tuple) else (node.params[key],)
    for ref in node.inputs:
      for number in node.outputs:
        links.same(node, ref, number, skip=named)
    for ref in (*node.inputs, *node.outputs):
      links.block(node, [links.of(ref)[axis] for axis in named])

  return link


def _iota(links: Trees, node: Node) -> None:
  units.distinguish(links.of(node.outputs[0])[node.params["dimension"]], links.reason(node).text)


def _first(links: Trees, node: Node) -> None:
  """The index of an extreme entry depends on the order of the entries."""
  (gone,), trees = node.params["axes"], links.of(node.inputs[0])
  links.block(node, [trees[gone]])
  for one, other in zip([*trees[:gone], *trees[gone + 1 :]], links.of(node.outputs[0]), strict=True):
    unify(one, other, links.reason(node))


_LINKS: dict[str, Callable[[Trees, Node], None]] = {
  "argmax": _first,
  "argmin": _first,
  "broadcast_in_dim": _broadcast,
  "concatenate": _concatenate,
  "conv_general_dilated": _conv,
  "cumsum": _all_but("axis"),
  "dot_general": _dot,
  "dynamic_slice": _whole_slice,
  "gather": _gather,
  "iota": _iota,
  "pad": _pad,
  "reduce_window_max": _window,
  "reduce_window_min": _window,
  "reduce_window_sum": _window,
  "reshape": _reshape,
  "rev": _all_but("dimensions"),
  "slice": _slice,
  "sort": _all_but("dimension"),
  "split": _split,
  "squeeze": _squeeze,
  "transpose": _transpose,
}
