"""Edit: channels in another order, {"edit": "permute", "leaf": name, "axis": axis, "order": indices}.

The function's values are what they were, to the rounding of sums in another order: whatever reads a channel reads it
where it now is. A grid of groups or blocks along the axis sees other neighbours.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from leanax.core.errors import UserError, unknown
from leanax.graph.edits.kind import Edit, Editable, as_array, check_net
from leanax.graph.program import read
from leanax.graph.retrace import retrace
from leanax.graph.shapes import leaves_by_name
from leanax.graph.sites import Analysis
from leanax.graph.sizes import Sizes

N = TypeVar("N", bound=Editable)


def permute(net: N, leaf: str, axis: int, order: Any) -> N:
  """Puts the entries of a leaf's axis into another order, and all that goes with them.

  Args:
    net: of variables in any containers; what comes back has the same.
    leaf: name of a leaf, such as "Dense_0/kernel".
    axis: of the leaf; negative from the end.
    order: of each entry the index that it had.

  Returns:
    The net with the variables in the new order.

  Raises:
    UserError: an unknown leaf, no such axis, no permutation, or channels that cannot be followed to their readers or
      that the function returns.
  """
  check_net(net)
  leaves_by_name(net.variables)  # the edited function finds them by name
  sizes = _sizes(Analysis(read(net.infer, net.variables, *net.example)))
  one = {"edit": "permute", "leaf": leaf, "axis": axis, "order": as_array(order).tolist()}
  _permute(sizes, one)
  return net.edited([one], sizes.leaves(net.variables))


def apply(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any) -> Callable[..., Any]:
  """Returns the function of the variables in the new order."""

  def permuted(variables: Any, *inputs: Any) -> Any:
    traced = retrace(fn, shapes, variables, inputs)
    sizes = _sizes(traced.analysis)
    for one in edits:
      _permute(sizes, one)
    return traced.output(sizes.run(traced.values))

  return permuted


def after(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any, inputs: tuple[Any, ...]) -> Any:
  """Returns the shapes of the variables, which stay as they are."""
  del fn, edits, inputs
  return shapes


def joins(edits: Sequence[Edit], other: Edit) -> bool:
  """Returns whether these edits and the next one are applied in one trace: always."""
  del edits, other
  return True


def _sizes(analysis: Analysis) -> Sizes:
  return Sizes(analysis, "put in another order", sums=True)


def _permute(sizes: Sizes, one: Edit) -> None:
  program, name, axis = sizes.analysis.program, one["leaf"], one["axis"]
  if name not in program.leaves:
    raise unknown("leaf", str(name), program.leaves)
  number = program.body.inputs[program.leaves.index(name)]
  rank = len(sizes.shape(number))
  if type(axis) is not int or not -rank <= axis < rank:
    raise UserError(f"{name!r} has {rank} axes; expected one of them, got {axis!r}")
  count, order = sizes.shape(number)[axis], as_array(one["order"])
  if order.dtype.kind not in "iu" or not np.array_equal(np.sort(order, None), np.arange(count)) or order.ndim != 1:
    raise UserError(f"the order of axis {axis} of {name!r} is {one['order']}; expected each of 0 to {count - 1} once")
  sizes.keep({(number, axis % rank): (name, order.tolist())})
