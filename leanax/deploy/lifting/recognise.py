"""From equations to layers: the layer of each primitive, and what is fused into it.

Groups of equations that are one layer (softmaxes, functions such as hard_swish) are found first. Each function of the
table then takes one equation whose operands are known and either starts a draft of a layer, adds to the draft that its
operand ends (a bias, a ReLU, the divisor of a mean), or passes a value on. What no function accepts is refused by the
primitive's name and the line in the user's code.
"""

from collections.abc import Callable, Collection

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.lifting import (
  choices,
  elementwise,
  functions,
  picks,
  products,
  resizes,
  rows,
  shapes,
  weighted,
  windows,
)
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.deploy.lifting.traced import Traced
from leanax.graph import unrolling
from leanax.graph.program import Node


def recognise(
  traced: Traced, foldable: bool = True, rounded: Collection[str] = ()
) -> tuple[list[Draft], dict[str, int]]:
  """Returns the layers of a traced function, in order, and the numbers of the values that are outputs, by name.

  Args:
    traced: the function.
    foldable: whether a factor behind a product may go into its weights (not once their grids are fixed).
    rounded: names of activations with grids.

  Raises:
    UserError: an equation that is not part of any layer.
  """
  lifter = Lifter(traced, foldable)
  groups = [*rows.find(traced), *resizes.find(traced)]
  groups = [*groups, *functions.find(traced, frozenset().union(*(one.nodes for one in groups)), rounded)]
  grouped = {index for group in groups for index in group.nodes}
  ends = {group.end: group for group in groups}
  choices.find_indices(lifter)
  for node in traced.nodes:
    if node.index in lifter.skipped:
      continue
    if node.index in grouped:
      for group in (ends[number] for number in node.outputs if number in ends):
        draft = Draft(group.kind, "", group.inputs, group.end, node, fields=group.fields, positive=group.positive)
        if group.kind in (ir.Activation, ir.Relu):
          lifter.start_elements(draft, node)
        else:
          draft.inputs = tuple(lifter.finished(x, node) if isinstance(x, int) else x for x in group.inputs)
          lifter.start(draft)
    elif node.primitive in _TABLE:
      _TABLE[node.primitive](lifter, node)
    else:
      raise traced.refuse(node, _REASONS.get(node.primitive, "the exported formats have no layer for it"))
  outputs = dict(traced.outputs)
  if traced.nodes:
    outputs = {name: lifter.finished(number, traced.nodes[-1]) for name, number in outputs.items()}
  if not lifter.drafts:
    raise UserError("the function has no layer to lift: it hands its input on")
  for name, number in outputs.items():
    if number in traced.inputs.values():
      raise UserError(f"{name!r}, which the function returns, is an input of it; return what layers make")
  return lifter.drafts, outputs


_REASONS = {
  "rem": "no layer has a remainder of what depends on the input. In flax it is the seq_lengths of a reversed RNN or of "
  "Bidirectional (flip_sequences): leave them out, give them as constants, or write a stablehlo file",
  "scan": f"the exported formats have no loops, and one of more than {unrolling.MOST} turns is not written out",
  "while": "the exported formats have no loops whose number of turns is found while they run",
  "optimization_barrier": "no layer is one; of a quantized model lift the float function, with `grids=`",
}
_TABLE: dict[str, Callable[[Lifter, Node], None]] = {
  **weighted.TABLE,
  **products.TABLE,
  **elementwise.TABLE,
  **windows.TABLE,
  **shapes.TABLE,
  **picks.TABLE,
  **choices.TABLE,
}
