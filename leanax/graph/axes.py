"""The axes of a program's values that are the same axis: the index spaces that channels live in.

Each equation says which axes of its operands and results go together. An axis that an equation mixes, splits or sums
over cannot be followed through it; that is remembered with the equation's name, and matters only when the axis is cut.
"""

from collections.abc import Callable
from typing import Any

from jax.extend import core as jex

from leanax.graph.program import Body, Node, Program

Axis = tuple[int, int]  # the number of a value, an axis of it

_ARITHMETIC = "add add_any sub mul div rem max min pow integer_pow neg abs sign floor ceil round clamp select_n square"
_FUNCTIONS = (
  "exp exp2 log log1p expm1 sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh logistic rsqrt sqrt cbrt "
  "erf erf_inv erfc lgamma digamma"
)
_LOGIC = "lt le gt ge eq ne and or not xor is_finite shift_left shift_right_logical shift_right_arithmetic nextafter"
_TYPES = "convert_element_type bitcast_convert_type reduce_precision stop_gradient copy copy_p name pvary pcast"
ELEMENTWISE = frozenset(" ".join((_ARITHMETIC, _FUNCTIONS, _LOGIC, _TYPES)).split(" "))
_PAIRWISE = frozenset(("optimization_barrier", "psum", "psum_invariant", "pmax", "pmin", "ppermute"))
_SOURCES = frozenset(("iota", "random_bits", "random_seed", "random_wrap", "random_unwrap", "random_fold_in"))
ORDERLESS = frozenset(f"reduce_{kind}" for kind in ("sum", "max", "min", "prod", "and", "or"))
_REDUCTIONS = ORDERLESS | {"argmax", "argmin"}


class Axes:
  """Sets of axes that go together (union-find), and why some cannot be followed.

  Attributes:
    blocked: the first equation that a set cannot be followed through.
    reasons: all of them.
  """

  def __init__(self, program: Program):
    self.program = program
    self._parent: dict[Axis, Axis] = {}
    self._blocks: list[tuple[Axis, str]] = []
    for node in program.nodes:
      self._node(node)
    self.blocked: dict[Axis, str] = {}
    self.reasons: dict[Axis, set[str]] = {}
    for axis, reason in self._blocks:
      self.blocked.setdefault(self.find(axis), reason)
      self.reasons.setdefault(self.find(axis), set()).add(reason)

  def find(self, axis: Axis) -> Axis:
    """The representative of an axis's set."""
    root = axis
    while (up := self._parent.get(root, root)) != root:
      root = up
    while axis != root:
      self._parent[axis], axis = root, self._parent.get(axis, root)
    return root

  def shape(self, ref: Any) -> tuple[Any, ...]:
    """The original shape of a value."""
    aval = ref.aval if isinstance(ref, jex.Literal) else self.program.avals[ref]
    return tuple(getattr(aval, "shape", ()))

  def link(self, a: Any, axis_a: int, b: Any, axis_b: int) -> None:
    """Says that two axes are one; an axis of one element has nothing to follow."""
    if isinstance(a, jex.Literal) or isinstance(b, jex.Literal) or self.shape(a)[axis_a] != self.shape(b)[axis_b]:
      return
    one, other = self.find((a, axis_a)), self.find((b, axis_b))
    if one != other:
      self._parent[one] = other

  def block(self, node: Node, ref: Any, axis: int) -> None:
    """Says that an axis cannot be followed through a node."""
    if not isinstance(ref, jex.Literal):
      self._blocks.append(((ref, axis), node.primitive))

  def same(self, a: Any, b: Any, shift: int = 0) -> None:
    """Links every axis of `a` with the one of `b` that is `shift` further on."""
    for axis in range(min(len(self.shape(a)), len(self.shape(b)) - shift)):
      self.link(a, axis, b, axis + shift)

  def _node(self, node: Node) -> None:
    if node.form:
      _HOLDING.get(node.form, _unknown)(self, node)
    elif node.primitive in ELEMENTWISE:
      for ref in node.inputs:
        self.same(ref, node.outputs[0])
    elif node.primitive in _PAIRWISE:
      for ref, number in zip(node.inputs, node.outputs, strict=True):
        self.same(ref, number)
    elif node.primitive in _REDUCTIONS:
      _reduce(self, node)
    elif node.primitive not in _SOURCES:
      _LINKS.get(node.primitive, _unknown)(self, node)


def _unknown(axes: Axes, node: Node) -> None:
  for ref in (*node.inputs, *node.outputs):
    for axis in range(len(axes.shape(ref))):
      axes.block(node, ref, axis)


def _through(axes: Axes, node: Node) -> None:
  bodies: tuple[Body, ...] = node.bodies
  operands = node.inputs[1:] if node.form == "cond" else node.inputs
  for body in bodies:
    for ref, number in zip(operands, body.inputs, strict=True):
      axes.same(ref, number)
    for ref, number in zip(body.outputs, node.outputs, strict=True):
      axes.same(ref, number)


def _scan(axes: Axes, node: Node) -> None:
  body, (consts, carry, _) = node.bodies[0], node.split
  for place, (ref, number) in enumerate(zip(node.inputs, body.inputs, strict=True)):
    axes.same(number, ref, int(place >= consts + carry))
  for place, (ref, number) in enumerate(zip(body.outputs, node.outputs, strict=True)):
    axes.same(ref, number, int(place >= carry))
    if place < carry:
      axes.same(ref, body.inputs[consts + place])


def _while(axes: Axes, node: Node) -> None:
  conds, consts, _ = node.split
  test, body = node.bodies
  for ref, number in zip((*node.inputs[:conds], *node.inputs[conds + consts :]), test.inputs, strict=True):
    axes.same(ref, number)
  for ref, number in zip(node.inputs[conds:], body.inputs, strict=True):
    axes.same(ref, number)
  for ref, number, into in zip(body.outputs, node.outputs, body.inputs[consts:], strict=True):
    axes.same(ref, number)
    axes.same(ref, into)


def _reduce(axes: Axes, node: Node) -> None:
  gone = set(node.params["axes"])
  for ref in node.inputs:
    kept = [axis for axis in range(len(axes.shape(ref))) if axis not in gone]
    for number in node.outputs:
      for place, axis in enumerate(kept):
        axes.link(ref, axis, number, place)
    for axis in gone:
      axes.block(node, ref, axis)


def _broadcast(axes: Axes, node: Node) -> None:
  for axis, place in enumerate(node.params["broadcast_dimensions"]):
    axes.link(node.inputs[0], axis, node.outputs[0], place)


def _transpose(axes: Axes, node: Node) -> None:
  for place, axis in enumerate(node.params["permutation"]):
    axes.link(node.inputs[0], axis, node.outputs[0], place)


def _squeeze(axes: Axes, node: Node) -> None:
  kept = [axis for axis in range(len(axes.shape(node.inputs[0]))) if axis not in node.params["dimensions"]]
  for place, axis in enumerate(kept):
    axes.link(node.inputs[0], axis, node.outputs[0], place)


Run = list[tuple[int, int]]  # (axis, size) of neighbours


def runs(source: tuple[int, ...], result: tuple[int, ...]) -> list[tuple[Run, Run]]:
  """The shortest runs of axes, ones aside, that a reshape turns into each other."""
  a, b = ([(i, n) for i, n in enumerate(shape) if n != 1] for shape in (source, result))
  found = []
  while a and b:
    left, right = [a.pop(0)], [b.pop(0)]
    p, q = left[0][1], right[0][1]
    while p != q:
      if p < q:
        left.append(a.pop(0))
        p *= left[-1][1]
      else:
        right.append(b.pop(0))
        q *= right[-1][1]
    found.append((left, right))
  return found


def _reshape(axes: Axes, node: Node) -> None:
  """Runs of axes with equal products; a run of one axis on each side, ones aside, is that axis."""
  source, result = node.inputs[0], node.outputs[0]
  for left, right in runs(axes.shape(source), axes.shape(result)):
    if len(left) == len(right) == 1:
      axes.link(source, left[0][0], result, right[0][0])
      continue
    for ref, run in ((source, left), (result, right)):
      for axis, _ in run:
        axes.block(node, ref, axis)


def _dot(axes: Axes, node: Node) -> None:
  (lhs, rhs), out = node.inputs, node.outputs[0]
  (contract_l, contract_r), (batch_l, batch_r) = node.params["dimension_numbers"]
  for i, j in zip((*contract_l, *batch_l), (*contract_r, *batch_r), strict=True):
    axes.link(lhs, i, rhs, j)
  place = 0
  for ref, order in (
    (lhs, batch_l),
    (lhs, [i for i in range(len(axes.shape(lhs))) if i not in (*contract_l, *batch_l)]),
    (rhs, [i for i in range(len(axes.shape(rhs))) if i not in (*contract_r, *batch_r)]),
  ):
    for axis in order:
      axes.link(ref, axis, out, place)
      place += 1


def is_depthwise(axes: Axes, node: Node) -> bool:
  """Returns whether each input channel has its own filter, and no more than one."""
  spec, groups = node.params["dimension_numbers"], node.params["feature_group_count"]
  return groups == axes.shape(node.inputs[0])[spec.lhs_spec[1]] == axes.shape(node.inputs[1])[spec.rhs_spec[0]]


def _conv(axes: Axes, node: Node) -> None:
  (lhs, rhs), out, spec = node.inputs, node.outputs[0], node.params["dimension_numbers"]
  axes.link(lhs, spec.lhs_spec[0], out, spec.out_spec[0])
  axes.link(rhs, spec.rhs_spec[0], out, spec.out_spec[1])
  blocked = [(lhs, axis) for axis in spec.lhs_spec[2:]]
  blocked += [(rhs, axis) for axis in spec.rhs_spec[2:]] + [(out, axis) for axis in spec.out_spec[2:]]
  if node.params["batch_group_count"] != 1:
    return _unknown(axes, node)
  if node.params["feature_group_count"] == 1:
    axes.link(lhs, spec.lhs_spec[1], rhs, spec.rhs_spec[1])
  elif is_depthwise(axes, node):
    axes.link(lhs, spec.lhs_spec[1], out, spec.out_spec[1])
  else:
    blocked += [(lhs, spec.lhs_spec[1]), (rhs, spec.rhs_spec[0]), (rhs, spec.rhs_spec[1]), (out, spec.out_spec[1])]
  for ref, axis in blocked:
    axes.block(node, ref, axis)
  return None


def _whole_axes(*keys: str, plain: Callable[[Any], bool]) -> Callable[[Axes, Node], None]:
  """Axes on which every one of these parameters is plain go through; the others cannot be followed."""

  def link(axes: Axes, node: Node) -> None:
    for axis in range(len(axes.shape(node.inputs[0]))):
      _or_block(axes, node, axis, all(node.params[key] is None or plain(node.params[key][axis]) for key in keys))

  return link


def _or_block(axes: Axes, node: Node, axis: int, whole: bool) -> None:
  source, result = node.inputs[0], node.outputs[0]
  if whole and axes.shape(source)[axis] == axes.shape(result)[axis]:
    axes.link(source, axis, result, axis)
  else:
    axes.block(node, source, axis)
    axes.block(node, result, axis)


def _all_but(*keys: str) -> Callable[[Axes, Node], None]:
  """Every axis goes through but those that a parameter names, for each operand and each result."""

  def link(axes: Axes, node: Node) -> None:
    named = {
      a for key in keys for a in (node.params[key] if isinstance(node.params[key], tuple) else [node.params[key]])
    }
    for ref in node.inputs:
      for number in node.outputs:
        for axis in range(len(axes.shape(ref))):
          if axis not in named:
            axes.link(ref, axis, number, axis)
    for ref in (*node.inputs, *node.outputs):
      for axis in named:
        axes.block(node, ref, axis)

  return link


def _slice(axes: Axes, node: Node) -> None:
  for axis in range(len(axes.shape(node.inputs[0]))):
    _or_block(axes, node, axis, True)  # of equal sizes, a slice is the whole axis


_WINDOW = _whole_axes("window_dimensions", "window_strides", "base_dilation", "window_dilation", plain=lambda n: n == 1)
_HOLDING = {"jit": _through, "remat": _through, "rule": _through, "cond": _through, "scan": _scan, "while": _while}
_LINKS: dict[str, Callable[[Axes, Node], None]] = {
  "broadcast_in_dim": _broadcast,
  "transpose": _transpose,
  "squeeze": _squeeze,
  "reshape": _reshape,
  "dot_general": _dot,
  "conv_general_dilated": _conv,
  "reduce_window_max": _WINDOW,
  "reduce_window_sum": _WINDOW,
  "reduce_window_min": _WINDOW,
  "pad": _whole_axes("padding_config", plain=lambda p: tuple(p) == (0, 0, 0)),
  "slice": _slice,
  "dynamic_slice": _slice,
  "concatenate": _all_but("dimension"),
  "split": _all_but("axis"),
  "rev": _all_but("dimensions"),
  "cumsum": _all_but("axis"),
  "sort": _all_but("dimension"),
}
