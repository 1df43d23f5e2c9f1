"""The makers of activations, and whether something reads them that is no operation of interest."""

import math
from typing import NamedTuple

from leanax.graph.live import read_by_sites
from leanax.graph.program import Node
from leanax.graph.sites import Analysis
from leanax.graph.view import Graph


class Maker(NamedTuple):
  """The maker of an activation; one of the two is None.

  Attributes:
    op: the name of the operation that makes it.
    input: or which leaf of the inputs it is.
  """

  op: str | None
  input: int | None


def exposed(graph: Graph) -> dict[str, Maker]:
  """Returns the makers, by name, of activations that operations of interest read, and others too, such as a ReLU.

  What the outputs do not depend on reads nothing. A tensor is left out where its maker cannot be replaced (inside a
  custom rule), or stands in another scan than a reader.
  """
  analysis = graph.analysis
  alive, read = read_by_sites(analysis)
  inside = {place for site in analysis.sites for place in site.op.nodes}
  readers: dict[int, list[Node]] = {}
  others: set[int] = set()
  for place, node in enumerate(analysis.flat):
    for ref in node.inputs if node.index in alive else ():
      base = analysis.value(ref).base
      if base not in read or base not in analysis.tensors or any(analysis.values[n].base == base for n in node.outputs):
        continue  # nobody's tensor, or handed on
      readers.setdefault(base, []).append(node)
      if place not in inside and not node.bodies:
        others.add(base)
  every = analysis.every_site() if others else {}
  found = {}
  for base in others:
    maker = _maker(analysis, base, every)
    if maker is not None and all(_scans(analysis, node) == _made_in(analysis, base) for node in readers[base]):
      found[analysis.tensors[base]] = maker
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


def _maker(analysis: Analysis, base: int, every: dict) -> Maker | None:
  arguments = analysis.program.body.inputs[len(analysis.program.leaves) :]
  if base in arguments:
    return Maker(None, arguments.index(base))
  node = analysis.values[base].producer
  site = None if node is None else every.get(node.index)
  return None if site is None or site.op.frozen else Maker(site.op.name, None)


def _scans(analysis: Analysis, node: Node) -> tuple[int, ...]:
  return analysis.scopes[node.index].scans


def _made_in(analysis: Analysis, base: int) -> tuple[int, ...]:
  node = analysis.values[base].producer
  return () if node is None else _scans(analysis, node)
