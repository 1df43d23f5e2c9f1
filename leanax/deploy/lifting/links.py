"""Values with their axes in another order, which are no layers until one reads them."""

from collections.abc import Sequence

from leanax.deploy.lifting.drafts import Lifter
from leanax.deploy.lifting.views import Link, composed, moved, ordered
from leanax.graph.program import Node


def turned(lifter: Lifter, number: int, permutation: Sequence[int], node: Node) -> int:
  """Returns the number of a value with its axes in another order."""
  number = lifter.number(number)
  if ordered(permutation):
    return number
  source, order = origin(lifter, number, node)
  order = composed(order, permutation)
  if ordered(order):
    return source
  if (source, order) not in lifter.turned:
    shape = moved(lifter.shape(source), order)
    new = lifter.turned[source, order] = lifter.traced.view(source, shape, lambda x: x.transpose(order))
    lifter.link(new, Link(source, lifter.shape(source), order, source), node)
  return lifter.turned[source, order]


def turn(lifter: Lifter, number: int, permutation: Sequence[int], end: int, node: Node) -> None:
  """Makes `end` of a value with its axes in another order."""
  number, shape = lifter.number(number), lifter.shape(number)
  long = [axis for axis in permutation if shape[axis] != 1]
  if number not in lifter.links and ordered(long):  # no numbers change places
    lifter.reshape(number, end, node)
    return
  source, order = origin(lifter, number, node)
  lifter.link(end, Link(source, lifter.shape(source), composed(order, permutation), number), node)


def origin(lifter: Lifter, number: int, node: Node) -> tuple[int, tuple[int, ...]]:
  """Returns the value that another one is with its axes in another order, and that order."""
  number = lifter.number(number)
  link = lifter.links.get(number)
  if link is not None and lifter.shape(link.source) == link.shape:
    return link.source, link.permutation
  if link is not None and link.permutation[0] != 0:
    return lifter.finished(lifter.reshaped(link.source, link.shape, node), node), link.permutation
  source = lifter.finished(number, node)
  return source, tuple(range(len(lifter.shape(source))))
