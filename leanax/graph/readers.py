"""The readers of a value, looked up ahead of the pass over a program; and the means that are a batch's statistics."""

from collections import defaultdict

from leanax.graph.ops import MOVES
from leanax.graph.program import Node, Program
from leanax.graph.reshapes import runs


class Readers:
  """Of each value of a program: the nodes that read it, and the call that it is a result of."""

  def __init__(self, program: Program):
    self._avals = program.avals
    self._nodes: dict[int, list[tuple[Node, int]]] = defaultdict(list)
    self._out: dict[int, list[int]] = defaultdict(list)
    self._kept = {ref for ref in program.body.outputs if isinstance(ref, int)}
    for node in program.nodes:
      for place, ref in enumerate(node.inputs):
        if isinstance(ref, int):
          self._nodes[ref].append((node, place))
      for body in node.bodies:
        for place, ref in enumerate(body.outputs):
          if isinstance(ref, int) and node.form == "jit":
            self._out[ref].append(node.outputs[place])
          elif isinstance(ref, int):
            self._kept.add(ref)

  def only_sum(self, number: int, axis: int) -> bool:
    """Returns whether every reader of a value sums it over this axis, such as a batch norm over the batch."""
    if number in self._kept or not (self._nodes[number] or self._out[number]):
      return False
    inside = (self._sums(node, place, number, axis) for node, place in self._nodes[number])
    return all(inside) and all(self.only_sum(outer, axis) for outer in self._out[number])

  def _sums(self, node: Node, place: int, number: int, axis: int) -> bool:
    params = node.params
    if node.primitive in ("reduce_sum", "psum", "psum_invariant"):
      return axis in params["axes"]
    if node.form == "jit":
      return self.only_sum(node.bodies[0].inputs[place], axis)
    if node.form:
      return False
    source, result = self._avals[number], self._avals[node.outputs[0]]
    if node.primitive == "transpose":
      axis = params["permutation"].index(axis)
    elif node.primitive == "stack":
      axis += int(axis >= params["axis"])
    elif node.primitive == "concatenate":
      if params["dimension"] == axis:
        return False
    elif node.primitive == "broadcast_in_dim":
      axis = params["broadcast_dimensions"][axis]
    elif source.shape == result.shape and (
      node.primitive in MOVES or node.primitive in ("mul", "div", "convert_element_type")
    ):
      if any(isinstance(ref, int) and i != place for i, ref in enumerate(node.inputs)):
        return False
    elif node.primitive in MOVES:
      after = [right for left, right in runs(source.shape, result.shape) if left == [(axis, source.shape[axis])]]
      if len(after) != 1 or len(after[0]) != 1:
        return False
      axis = after[0][0][0]
    else:
      return False
    return self.only_sum(node.outputs[0], axis)
