"""Axes of leaves that have to be cut together: channels, features, attention heads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from leanax.graph import units
from leanax.graph.linking import Links
from leanax.graph.program import read
from leanax.graph.sites import Analysis
from leanax.graph.units import Reason, Units


class Member(NamedTuple):
  """An axis of a leaf that a group runs along.

  Attributes:
    leaf: the leaf's name.
    axis: of the leaf.
    indices: (size, k), for each unit of the group the k indices along the axis that belong to it.
  """

  leaf: str
  axis: int
  indices: np.ndarray


@dataclass(frozen=True, eq=False)
class Group:
  """Units, such as channels or heads, that are removed or reordered in all members at once.

  Attributes:
    members: where they are, in the order of the leaves.
    size: how many units there are.
    reason: the equation, and the user's line, through which they cannot be followed; "" where the group is whole. The
      axes of the function's inputs and outputs have a reason, too.
    reduced: equations that take a sum or a maximum over the units, such as the mean of a layer norm: units can be
      reordered, but those that are zero still count there, so that removing them is not the same as zeroing them.
  """

  members: tuple[Member, ...]
  size: int
  reason: str = ""
  reduced: tuple[str, ...] = ()


def groups(fn: Callable[..., Any], variables: Any, *inputs: Any) -> list[Group]:
  """Returns the groups of a function's leaves, in the order in which the leaves first have them.

  Axes are followed through dots, convolutions (grouped and depthwise too), norms, sums, concatenations, splits,
  padding, reshapes, transposes, pools, calls, scans and branches. An axis that is made of several, such as heads and
  their features, or channels flattened with positions, is in the groups of each; so these overlap. Reordering the units
  of a group without a reason, in all members alike, leaves the function as it is.

  Args:
    fn: `fn(variables, *inputs) -> out`.
    variables: a tree of arrays or `jax.ShapeDtypeStruct`.
    *inputs: example inputs, or their shapes.
  """
  program = read(fn, variables, *inputs)
  links = Links(program)
  arguments = program.body.inputs[len(program.leaves) :]
  for number in arguments:
    for tree in links.of(number):
      units.block(tree, Reason("input", "an axis of the function's inputs"))
  last = Analysis(program).sites[-1].op
  for operand, ref in zip(last.inputs, program.body.outputs, strict=True):
    for tree in links.of(ref) if operand.leaf is None else ():
      units.block(tree, Reason("output", "an axis that the function returns"))
  found: dict[Units, list[Member]] = {}
  for name, number in zip(program.leaves, program.body.inputs, strict=False):
    for axis, tree in enumerate(links.of(number)):
      for one, place in units.places(tree).items():
        if one.size > 1:
          order = np.argsort(place, kind="stable")[np.count_nonzero(place < 0) :]
          found.setdefault(one, []).append(Member(name, axis, order.reshape(one.size, -1)))
  return [
    Group(tuple(members), one.size, one.reason or one.distinct, tuple(sorted(one.reduced)))
    for one, members in found.items()
  ]
