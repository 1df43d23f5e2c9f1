"""One grid for activations whose numbers are joined, sliced, spread or chosen: a file moves their codes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from leanax.graph import Graph, met, passed
from quant.quantizer import Quantizer, is_input

Place = tuple[str, int]


class Joined(NamedTuple):
  """Quantizers of activations some of which are shared.

  Attributes:
    tensors: by the name of an activation.
    observed: the places at which each of them is observed, by its key.
    parts: the keys of those observed at several places in each batch.
  """

  tensors: dict[str, Quantizer]
  observed: dict[str, Sequence[Place]]
  parts: frozenset[str]


def share(
  graph: Graph, tensors: Mapping[str, Quantizer], made: Mapping[str, object], observed: Mapping[str, Sequence[Place]]
) -> Joined:
  """Gives what is rounded where it is made and what holds its numbers one quantizer, where rules say the same of both.

  The range is that of all numbers: it is observed at the activations that no other one of them holds as a whole. An
  observer for which the order of batches matters sees a single place, and shares only where there is one.

  Args:
    graph: of the model.
    tensors: quantizers by the name of an activation.
    made: names of those that are rounded where they are made.
    observed: the places at which each is observed.
  """
  free = {name for name in tensors if not is_input(name) and len(observed[name]) == 1}  # not in several branches
  edges = [
    one
    for one in passed(graph, [name for name in made if name in free], free)
    if tensors[one.source].spec == tensors[one.into].spec and tensors[one.into].fixed == tensors[one.source].fixed
  ]
  alike = [
    names
    for names in met(graph, [name for name in made if name in free], free)
    if len({(tensors[name].spec, tensors[name].fixed) for name in names}) == 1
  ]
  group = {name: name for name in free}

  def root(name: str) -> str:
    while group[name] != name:
      name = group[name]
    return name

  for one in edges:
    group[root(one.source)] = root(one.into)
  for first, *others in alike:
    group |= {root(name): root(first) for name in others}
  members: dict[str, list[str]] = {}
  for name in tensors:
    if name in free:
      members.setdefault(root(name), []).append(name)
  found, places, parts = dict(tensors), dict(observed), set[str]()
  held = {one.source for one in edges if one.whole}
  for names in members.values():
    seen = [name for name in names if name not in held]
    ordered = any(statistic.merge is None for statistic in tensors[names[0]].spec.make_observer().statistics)
    if len(names) == 1 or (ordered and len(seen) > 1):
      continue
    key = seen[0]
    centred = any(tensors[name].centred for name in names)
    found |= dict.fromkeys(names, tensors[key]._replace(centred=centred))
    places = {name: place for name, place in places.items() if name not in names}
    places[key] = [observed[name][0] for name in seen]
    parts |= {key} if len(seen) > 1 else set()
  return Joined(found, places, frozenset(parts))
