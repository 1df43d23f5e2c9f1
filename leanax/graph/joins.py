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
  bases = _bases(graph, {*sources, *into})
  named = {bases[name]: name for name in into}
  found: dict[tuple[str, str], bool] = {}
  for source, base, whole in _reached(graph, {name: bases[name] for name in sources}, named):
    if base in named:
      found[source, named[base]] = whole or found.get((source, named[base]), False)
  return [Passed(*pair, whole) for pair, whole in found.items()]


def met(graph: Graph, sources: Collection[str], into: Collection[str]) -> list[list[str]]:
  """Returns which activations alone make up a join or a choice without a name that only sigmoids and the like read.

  These are sigmoids, tanhs and softmaxes, which runtimes have on codes.

  Args:
    graph: `graph.trace` of the model.
    sources: names, among those of `exposed`.
    into: names of activations; behind these, and behind what operations of interest read, nothing is followed.
  """
  analysis, bases = graph.analysis, _bases(graph, {*sources, *into})
  named = {*analysis.tensors, *(bases[name] for name in into)}
  holders: dict[int, dict[str, None]] = {bases[name]: {name: None} for name in sources}
  for source, base, _ in _reached(graph, {name: bases[name] for name in sources}, named):
    if base not in named:
      holders.setdefault(base, {})[source] = None
  found, ends = [], Ends(analysis, read_by_sites(analysis)[0])
  for node in analysis.flat:
    places = _WHOLE.get(node.primitive, _PART.get(node.primitive, ()))
    refs = [ref for place, ref in enumerate(node.inputs) if places is None or place in places]
    operands = [analysis.value(ref).base for ref in refs if analysis.value(ref).data]
    if len(operands) > 1 and all(base in holders for base in operands):
      made = [
        holders.get(base, {}) for base in map(analysis.resolve, node.outputs) if _looked_up(analysis, ends, base, named)
      ]
      found += [list(names) for names in made if len(names) > 1]
  return found


def _looked_up(analysis: Analysis, ends: Ends, base: int, named: Collection[int]) -> bool:
  """Returns whether a value without a name is moved, or read by sigmoids, tanhs and softmaxes (maximum, difference)."""
  todo, seen = [base], set()
  while todo:
    number = todo.pop()
    if analysis.value(number).base in named:
      return False
    for node, place in ends.readers(number):
      shifted = node.primitive == "sub" and all(analysis.value(ref).data for ref in node.inputs)
      if node.primitive in ("logistic", "tanh", "reduce_max") or shifted:
        continue
      if _hands(analysis, ends, node, place):
        todo += [out for out in map(analysis.resolve, node.outputs) if out not in seen]
        seen.update(map(analysis.resolve, node.outputs))
      else:
        return False
  return True


def _bases(graph: Graph, names: Collection[str]) -> dict[str, int]:
  analysis, makers = graph.analysis, exposed(graph, ())
  bases = {name: base for base, name in analysis.tensors.items()}
  return bases | {name: analysis.value(makers[name].value).base for name in names if name in makers}


def _reached(graph: Graph, starts: dict[str, int], named: Collection[int]) -> Iterator[tuple[str, int, bool]]:
  """Yields, of each activation, the values up to named ones that hold numbers of it, and whether they hold all."""
  analysis, ends = graph.analysis, Ends(graph.analysis, read_by_sites(graph.analysis)[0])
  for source, start in starts.items():
    maker = analysis.values[start].producer
    scope = None if maker is None else analysis.scopes[maker.index]
    todo, seen = [(start, True)], set()
    while todo:
      one = number, whole = todo.pop()
      base = analysis.value(number).base
      if base != start:
        yield source, base, whole
      if one not in seen and (base == start or base not in named):
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
