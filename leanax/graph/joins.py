"""Activations whose numbers go into other ones as they are: through slices, joins, spreads and choices of entries."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from leanax.graph.ends import Ends
from leanax.graph.live import read_by_sites
from leanax.graph.makers import exposed
from leanax.graph.ops import is_float
from leanax.graph.program import Node
from leanax.graph.sites import Analysis
from leanax.graph.view import Graph

# Equations whose results hold numbers of these operands, all of them or some; None for every operand.
_WHOLE = {"concatenate": None, "stack": None, "pad": (0,), "broadcast_in_dim": (0,), "rev": (0,)}
_PART = {"select_n": (1, 2), "max": (0, 1), "min": (0, 1)}
_PART |= dict.fromkeys(
  ["slice", "dynamic_slice", "split", "unstack", "gather", "reduce_max", "reduce_min", "reduce_window_max"], (0,)
)


class Passed(NamedTuple):
  """An activation whose numbers another one holds, all of them if it is `whole`."""

  source: str
  into: str
  whole: bool


def passed(graph: Graph, sources: Collection[str], into: Collection[str]) -> list[Passed]:
  """Returns which activations go into which others without another of them between, in the scan that they are made in.

  Dropout, and a pad of any number, are looked through; branches are not.

  Args:
    graph: `graph.trace` of the model.
    sources: names, among those of `exposed`.
    into: names of activations, as operands carry them or as `exposed` gives them.
  """
  analysis, makers = graph.analysis, exposed(graph, ())
  bases = {name: base for base, name in analysis.tensors.items()}
  bases |= {name: analysis.value(makers[name].value).base for name in (*sources, *into) if name in makers}
  named = {bases[name]: name for name in into}
  ends = Ends(analysis, read_by_sites(analysis)[0])
  found: dict[tuple[str, str], bool] = {}
  for source in sources:
    for name, whole in _reached(analysis, ends, bases[source], named):
      found[source, name] = whole or found.get((source, name), False)
  return [Passed(*pair, whole) for pair, whole in found.items()]


def _reached(analysis: Analysis, ends: Ends, start: int, named: dict[int, str]) -> Iterator[tuple[str, bool]]:
  """Yields the names of activations that hold numbers of a value, and whether they hold all of them."""
  maker = analysis.values[start].producer
  scope = None if maker is None else analysis.scopes[maker.index]
  todo, seen = [(start, True)], set()
  while todo:
    one = number, whole = todo.pop()
    base = analysis.value(number).base
    if base != start and base in named:
      yield named[base], whole
    elif one not in seen:
      for node, place in ends.readers(number):
        inside = scope is None or analysis.scopes[node.index][::3] == scope[::3]
        if inside and not analysis.scopes[node.index].branches and _hands(analysis, ends, node, place):
          todo += [(out, whole and node.primitive not in _PART) for out in map(analysis.resolve, node.outputs)]
    seen.add(one)


def _hands(analysis: Analysis, ends: Ends, node: Node, place: int) -> bool:
  """Returns whether the numbers of an operand are among those of the result."""
  if ends.hands_on(node) or ends.passes(node, place):
    return True
  places = _WHOLE.get(node.primitive, _PART.get(node.primitive, ()))
  if places is not None and place not in places:
    return False
  if node.primitive in ("max", "min"):  # of two activations; a limit is a function of one
    return all(analysis.value(ref).data for ref in node.inputs)
  return is_float(analysis.program.avals[node.outputs[0]])
