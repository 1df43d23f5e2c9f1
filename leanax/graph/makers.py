"""The makers of activations that something reads which is no operation of interest."""

import math
from collections.abc import Collection, Iterable
from typing import NamedTuple

from leanax.graph.ends import KINDS, Ends
from leanax.graph.live import read_by_sites
from leanax.graph.sites import Analysis
from leanax.graph.view import Graph


class Maker(NamedTuple):
  """The maker of an activation.

  Attributes:
    value: the number of the value, at a place where it can be replaced.
    site: the operation of interest of which it is the result, with all that its layer takes up (`graph.ends`); None for
      the result of another one, and for an input.
  """

  value: int
  site: str | None


def exposed(graph: Graph, readers: Collection[str] | None = None) -> dict[str, Maker]:
  """Returns the makers, by name, of activations that operations of interest make or read, and others read, too.

  Those that none of interest reads are named as if one did, after all others. What the outputs do not depend on reads
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
  return found


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


def _free(name: str, taken: Iterable[str]) -> str:
  count, found = 0, name
  while found in taken:
    count += 1
    found = f"{name}#{count}"
  return found


def _made_in(analysis: Analysis, value: int) -> tuple[int, ...]:
  node = analysis.values[value].producer
  return () if node is None else analysis.scopes[node.index].scans
