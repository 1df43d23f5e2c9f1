"""Activations whose range is known from the function that makes them: sigmoids, tanhs and softmaxes."""

from collections.abc import Mapping
from typing import Any

from leanax.graph.ends import Ends
from leanax.graph.live import read_by_sites
from leanax.graph.ops import Op
from leanax.graph.program import Node
from leanax.graph.sites import Analysis
from leanax.graph.view import Graph

_ALONE = {"logistic": "sigmoid", "tanh": "tanh"}


def bounded(graph: Graph) -> dict[str, str]:
  """Returns the function, "sigmoid", "tanh" or "softmax", that makes an activation, by the activation's name.

  Dropout is looked through; other activations are left out.
  """
  analysis = graph.analysis
  ends = Ends(analysis, read_by_sites(analysis)[0])
  found = {name: function(analysis, ends, base) for base, name in analysis.tensors.items()}
  return {name: one for name, one in found.items() if one is not None}


def second_factor(op: Op, functions: Mapping[str, str]) -> int:
  """Returns which operand of a product of two activations is its second factor, whose zero point has to be 0.

  Integer kernels for such products need one. It is the second operand, unless that one is the result of a sigmoid or a
  softmax, whose zero point is the lowest code, as the weights of attention may be.

  Args:
    op: a dot without a kernel.
    functions: as `bounded` returns them.
  """
  return 0 if functions.get(op.inputs[1].tensor or "") in ("sigmoid", "softmax") else 1


def function(analysis: Analysis, ends: Ends, ref: Any) -> str | None:
  """Returns the function of which a value is the result."""
  while True:
    node = analysis.value(ref).producer
    if node is None or node.bodies:
      return None
    place = next((i for i, one in enumerate(node.inputs) if analysis.value(one).data), 0)
    if not ends.hands_on(node) and not ends.passes(node, place):
      return "softmax" if _softmax(analysis, node) else _ALONE.get(node.primitive)
    ref = node.inputs[place]


def gate(analysis: Analysis, ends: Ends, ref: Any) -> str | None:
  """Returns the function of which a value is the result; "clip" for what is clipped and scaled, as a hard sigmoid."""
  node = analysis.value(ref).producer
  data = [one for one in node.inputs if analysis.value(one).data] if node is not None else []
  if node is not None and node.primitive in ("mul", "div") and len(data) == 1:
    known = [one for one in node.inputs if not analysis.value(one).data]
    node = analysis.value(data[0]).producer if all(analysis.known(one) is not None for one in known) else None
  if node is not None and node.primitive in ("min", "clamp"):
    return "clip"
  return function(analysis, ends, ref)


def _softmax(analysis: Analysis, node: Node) -> bool:
  """Returns whether a node divides exponentials by their sum."""
  if node.primitive != "div":
    return False
  above, below = (_made_by(analysis, ref) for ref in node.inputs)
  if above is None or below is None or (above.primitive, below.primitive) != ("exp", "reduce_sum"):
    return False
  return _made_by(analysis, below.inputs[0]) is above


def _made_by(analysis: Analysis, ref: Any) -> Node | None:
  """Returns the node that a value comes from, behind what gives a sum its axes back."""
  node = analysis.value(ref).producer
  while node is not None and node.primitive in ("broadcast_in_dim", "reshape", "expand_dims"):
    node = analysis.value(node.inputs[0]).producer
  return node
