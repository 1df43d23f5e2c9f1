"""The parts of the axes of leaves: the axes that were flattened into one, and whether their order is known.

A kernel that reads a flattened map has an axis of height * width * channels numbers. The reshape in the traced function
says so, and so the leading channels are found at every place, whatever layout the model's author chose.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.extend import core as jex

from leanax.graph.axes import ORDERLESS, Axes, Axis, runs
from leanax.graph.program import Program, read


class Made(NamedTuple):
  """An axis.

  Attributes:
    sizes: of the axes that it is made of, outermost first; its own size where it is one.
    lost: for each of them an equation that mixes its entries in a way that is not followed, or "".
  """

  sizes: tuple[int, ...]
  lost: tuple[str, ...] = ("",)


def axis_parts(fn: Callable[..., Any], variables: Any, *inputs: Any) -> dict[str, tuple[Made, ...]]:
  """Returns the parts of each axis of each leaf, by the leaf's name.

  Args:
    fn: `fn(variables, *inputs) -> out`.
    variables: a tree of arrays or `jax.ShapeDtypeStruct`.
    *inputs: an example, or its shapes.
  """
  program = read(fn, variables, *inputs)
  axes = Axes(program)
  wholes, mixed = _reshapes(program, axes)

  def lost(axis: Axis) -> str:
    through = sorted(axes.reasons.get(axis, set()) - ORDERLESS - {"reshape"})
    return through[0] if through else "reshape" if axis in mixed else ""

  def describe(axis: Axis, size: int) -> Made:
    found = wholes.get(axis, [((size, axis),)])
    sizes = tuple(n for n, _ in found[0])
    reasons = [lost(axis) or lost(axes.find(part)) for _, part in found[0]]
    if any(tuple(n for n, _ in other) != sizes for other in found):  # flattened in one way, and read in another
      reasons = [reason or "reshape" for reason in reasons]
    return Made(sizes, tuple(reasons))

  return {
    name: tuple(describe(axes.find((number, axis)), size) for axis, size in enumerate(axes.shape(number)))
    for name, number in zip(program.leaves, program.body.inputs, strict=False)
  }


Parts = tuple[tuple[int, Axis], ...]


def _reshapes(program: Program, axes: Axes) -> tuple[dict[Axis, list[Parts]], set[Axis]]:
  """By axis, the (size, axis) that reshapes make it of; and axes that a reshape cuts across."""
  wholes: dict[Axis, list[Parts]] = {}
  mixed: set[Axis] = set()
  for node in program.nodes:
    if node.primitive != "reshape" or isinstance(node.inputs[0], jex.Literal):
      continue
    source, result = node.inputs[0], node.outputs[0]
    for left, right in runs(axes.shape(source), axes.shape(result)):
      sides = [[(n, axes.find((ref, axis))) for axis, n in run] for ref, run in ((source, left), (result, right))]
      one, many = sorted(sides, key=len)
      if len(one) > 1:
        mixed.update(axis for _, axis in (*one, *many))
      elif len(many) > 1:
        wholes.setdefault(one[0][1], []).append(tuple(many))
  return wholes, mixed
