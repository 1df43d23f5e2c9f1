"""The makers of activations that something reads which is no operation of interest."""

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from leanax.graph.bounded import gate
from leanax.graph.ends import KINDS, Ends
from leanax.graph.live import read_by_sites
from leanax.graph.ops import ELEMENTWISE
from leanax.graph.sites import Analysis
from leanax.graph.view import Graph

_SPREAD = ("broadcast_in_dim",)
_PARTS = (*_SPREAD, "slice", "dynamic_slice", "split", "unstack", "rev", "gather")


class Maker(NamedTuple):
  """The maker of an activation.

  Attributes:
    value: the number of the value, at a place where it can be replaced.
    site: the operation of interest of which it is the result, with all that its layer takes up (`graph.ends`); None for
      the result of another one, and for an input.
    function: of a gate, whose site is the nearest operation of interest before it, the function that makes it.
    gates: the activation that a gate is multiplied by.
    product: of a gate that is the sigmoid of the very activation that it is multiplied by, as in silu, the result.
  """

  value: int
  site: str | None
  function: str | None = None
  gates: str | None = None
  product: str | None = None


def exposed(graph: Graph, readers: Collection[str] | None = None) -> dict[str, Maker]:
  """Returns the makers, by name, of activations that operations of interest make or read, and others read, too.

  Those that none of interest reads are named as if one did, after all others, and then the gates of such activations:
  sigmoids and the like of other numbers that one of them is multiplied by. What the outputs do not depend on reads
  nothing. A tensor is left out where it cannot be replaced (inside a custom rule), or is made in another scan than a
  reader stands in.

  Args:
    graph: `graph.trace` of the model.
    readers: names of the operations of interest that do not count as others; all of them by default.
  """
  analysis = graph.analysis
  alive, read = read_by_sites(analysis)
  ends = Ends(analysis, alive, readers)
  sites = [site for site in analysis.sites if site.op.kind in KINDS]
  results = {end: site.op.name for site in sites for end in ends.ends(site)}
  named = [base for base in analysis.tensors if base in read]
  places, taken, found = replaceable(analysis), set(analysis.tensors.values()), {}
  for value in dict.fromkeys((*named, *results)):
    name = analysis.tensors.get(value) or _free(f"{results[value]}:out", taken)
    taken.add(name)
    uses = ends.uses(value)
    hands_on = uses.other or (uses.padded and value in read)
    if value not in places or not hands_on or any(scans != _made_in(analysis, value) for scans in uses.scans):
      continue
    found[name] = Maker(places[value], results.get(value))
    for scan in _made_in(analysis, value):
      analysis.scan_names[scan].add(name)
  bases = {analysis.value(maker.value).base: name for name, maker in found.items()}
  for value, function, multiplied, product in _gates(analysis, ends, alive, bases):
    site = analysis.label(analysis.values[value].roots)
    if value in places and value not in bases and site is not None:
      name = _free(f"{site}:gate", taken)
      taken.add(name)
      bases[value], found[name] = name, Maker(places[value], site, function, multiplied, product)
      for scan in _made_in(analysis, value):
        analysis.scan_names[scan].add(name)
  return found


def _gates(
  analysis: Analysis, ends: Ends, alive: set[int], named: dict[int, str]
) -> Iterator[tuple[int, str, str, str | None]]:
  """Yields each gate, its function, and the name of the activation in the same scan that it is multiplied by.

  Of a silu, whose gate is the sigmoid of that activation, the name of the product is the last, which must have one.
  """
  for node in analysis.flat:
    if node.primitive != "mul" or node.index not in alive:
      continue
    for ref, other in (node.inputs, node.inputs[::-1]):
      value, base = _source(analysis, ref, _SPREAD), _source(analysis, other, _PARTS, named)
      if value is None or base not in named:
        continue  # nothing on a grid
      product = None
      if _at_same_place(analysis, value, analysis.value(other).base):
        bases = (analysis.value(one).base for one in ends.undropped(node.outputs[0]))
        product = next((analysis.tensors[one] for one in bases if one in analysis.tensors), None)
        if product is None or not _sigmoid_of(analysis, value, analysis.value(other).base):
          continue  # a function of one number
      function = gate(analysis, ends, value)
      if function is not None and _made_in(analysis, value) == _made_in(analysis, base):
        yield value, function, named[base], product


def _sigmoid_of(analysis: Analysis, value: int, of: int) -> bool:
  """Returns whether a value is the sigmoid of another one."""
  node = analysis.values[analysis.value(value).base].producer
  return node is not None and node.primitive == "logistic" and analysis.value(node.inputs[0]).base == of


def _at_same_place(analysis: Analysis, value: int, of: int) -> bool:
  """Returns whether each number of a value is a function of the number of another one at the same place."""
  todo, alike = [value], analysis.values[value].roots == analysis.values[of].roots
  while alike and todo:
    base = analysis.value(todo.pop()).base
    node = analysis.values[base].producer
    if base == of:
      return True
    if node is not None and node.primitive in ELEMENTWISE:
      todo += [ref for ref in node.inputs if analysis.value(ref).data]
  return False


def replaceable(analysis: Analysis) -> dict[int, int]:
  """Returns for each value the number under which it can be replaced for all its readers; no entry where it cannot.

  What a custom rule makes is replaced where it comes out.
  """
  arguments = analysis.program.body.inputs
  found: dict[int, int] = dict(zip(arguments, arguments, strict=True))
  for node in analysis.program.nodes:  # inner ones come first
    if analysis.scopes[node.index].frozen is None:
      for number in node.outputs:
        found.setdefault(analysis.resolve(number), number)
  return found


def pooled(graph: Graph) -> dict[tuple[str, int], int]:
  """Returns for each operand of an operation of interest how far it was max-pooled since its activation was made.

  One tensor has one name before and behind its pools, but not one range.
  """
  analysis, found = graph.analysis, {}
  for site in analysis.sites:
    for place, ref in enumerate(site.refs):
      value, size = analysis.value(ref), 1
      while value.producer is not None and value.producer.inputs:
        before = analysis.value(value.producer.inputs[0])
        if before.base != value.base or before is value:
          break
        size *= math.prod(value.producer.params.get("window_dimensions", ()))
        value = before
      found[site.op.name, place] = size
  return found


def _source(analysis: Analysis, ref: Any, through: Collection[str], ends: Collection[int] = ()) -> int | None:
  """Returns the activation that a value is moved from, looking through these equations up to one of the ends."""
  while analysis.value(ref).data:
    base = analysis.value(ref).base
    node = analysis.values[base].producer
    if base in ends or node is None or node.primitive not in through:
      return base
    ref = node.inputs[0]
  return None


def _free(name: str, taken: Iterable[str]) -> str:
  count, found = 0, name
  while found in taken:
    count += 1
    found = f"{name}#{count}"
  return found


def _made_in(analysis: Analysis, value: int) -> tuple[int, ...]:
  node = analysis.values[value].producer
  return () if node is None else analysis.scopes[node.index].scans
