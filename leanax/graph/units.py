"""The units of axes, as trees that are unified.

An axis is one run of units, a product of axes that were flattened, or several axes one after the other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Reason(NamedTuple):
  """Why units cannot be followed: an equation's name, and as a text with the line of the user's code."""

  name: str
  text: str


@dataclass(slots=True, eq=False)
class Units:
  """A run of units, of which nothing more is known; or, once `made` is set, whatever that is.

  Attributes:
    size: how many.
    made: what it turned out to be.
    reasons: why it cannot be followed, by the equation's name, in the order in which they were found.
    distinct: what tells the units apart, such as an array of constants, or "".
    reduced: equations that take a sum, or a maximum, over it.
    joined: names of the equations that put it beside others in one axis, or take an axis apart in another way.
  """

  size: int
  made: "Tree | None" = None
  reasons: dict[str, Reason] = field(default_factory=dict)
  distinct: str = ""
  reduced: set[str] = field(default_factory=set)
  joined: set[str] = field(default_factory=set)

  @property
  def reason(self) -> str:
    """The first reason why it cannot be followed, or ""."""
    return next((reason.text for reason in self.reasons.values()), "")


@dataclass(slots=True, eq=False)
class Product:
  """Axes flattened into one, the slowest first; two at least, none of length 1."""

  parts: tuple["Tree", ...]

  @property
  def size(self) -> int:
    return math.prod(part.size for part in self.parts)


@dataclass(slots=True, eq=False)
class Row:
  """Axes one after the other."""

  parts: tuple["Tree", ...]

  @property
  def size(self) -> int:
    return sum(part.size for part in self.parts)


Tree = Units | Product | Row
Divide = Callable[[Tree, int, Reason], "list[Tree] | None"]


def seen(tree: Tree) -> Tree:
  """Returns a tree as it is by now; parts that turned out to be products or rows themselves are taken up."""
  while isinstance(tree, Units) and tree.made is not None:
    tree = tree.made
  if isinstance(tree, Units):
    return tree
  parts: list[Tree] = []
  for part in map(seen, tree.parts):
    parts += part.parts if type(part) is type(tree) else (part,)
  tree.parts = tuple(parts)
  return tree


def product(parts: Sequence[Tree]) -> Tree:
  """Returns the product of some axes; those of length 1 are left out."""
  kept = tuple(part for part in parts if part.size != 1)
  return kept[0] if len(kept) == 1 else Product(kept) if kept else Units(1)


def row(parts: Sequence[Tree]) -> Tree:
  """Returns axes one after the other; empty ones are left out."""
  kept = tuple(part for part in parts if part.size)
  return kept[0] if len(kept) == 1 else Row(kept) if kept else Units(0)


def units(tree: Tree) -> list[Units]:
  """Returns the units that a tree is made of, in order."""
  tree = seen(tree)
  return [tree] if isinstance(tree, Units) else [one for part in tree.parts for one in units(part)]


def block(tree: Tree, reason: Reason) -> None:
  """Says why the units of an axis cannot be followed."""
  for one in units(tree):
    one.reasons.setdefault(reason.name, reason)


def distinguish(tree: Tree, reason: str) -> None:
  """Says what tells the units of an axis apart; the first reason stays."""
  for one in units(tree):
    one.distinct = one.distinct or reason


def reduce(tree: Tree, name: str) -> None:
  """Says that an equation takes a sum, or a maximum, over an axis."""
  for one in units(tree):
    one.reduced.add(name)


def join(tree: Tree, name: str) -> None:
  """Says that an equation puts the units of an axis beside each other."""
  for one in units(tree):
    one.joined.add(name)


def unify(a: Tree, b: Tree, reason: Reason) -> None:
  """Says that two axes of one length are the same; what cannot be brought together is blocked for this reason."""
  a, b = seen(a), seen(b)
  if a is b or a.size != b.size or a.size <= 1:
    return
  if isinstance(b, Units) and not isinstance(a, Units):
    a, b = b, a
  if isinstance(a, Units):
    if a in units(b):
      block(b, reason)
      return
    a.made = b
    for one in units(b):
      one.reasons = one.reasons | {name: why for name, why in a.reasons.items() if name not in one.reasons}
      one.distinct = one.distinct or a.distinct
      one.reduced |= a.reduced
      one.joined |= a.joined
  elif isinstance(a, Product) and isinstance(b, Product):
    _unify_parts(list(a.parts), list(b.parts), _factors, reason)
  elif isinstance(a, Row) and isinstance(b, Row):
    _unify_parts(list(a.parts), list(b.parts), _halves, reason)
  elif isinstance(a, Product) and isinstance(b, Row):
    _distribute(a, b, reason)
  elif isinstance(a, Row) and isinstance(b, Product):
    _distribute(b, a, reason)


def _unify_parts(a: list[Tree], b: list[Tree], divide: Divide, reason: Reason) -> None:
  """Unifies two lists of parts, first by first; the longer of two parts is divided where the other list has a boundary.

  Args:
    a: the parts of one axis; emptied.
    b: those of the other.
    divide: from (part, size of the shorter one, reason) to the pieces of the part; None where it cannot be divided.
    reason: as of `unify`.
  """
  while a and b:
    one, other = seen(a[0]), seen(b[0])
    if one.size == other.size:
      unify(a.pop(0), b.pop(0), reason)
      continue
    long, short = (a, other) if one.size > other.size else (b, one)
    pieces = divide(seen(long[0]), short.size, reason)
    if pieces is None:
      for tree in (*a, *b):
        block(tree, reason)
      return
    long[:1] = pieces


def _factors(tree: Tree, size: int, reason: Reason) -> list[Tree] | None:
  """Returns units as two factors, the slower one of this size."""
  if not isinstance(tree, Units) or tree.size % size:
    return None
  factors: tuple[Tree, Tree] = Units(size), Units(tree.size // size)
  unify(tree, Product(factors), reason)
  join(tree, reason.name)
  return list(factors)


def _halves(tree: Tree, size: int, reason: Reason) -> list[Tree] | None:
  """Returns a tree as two parts, the first one of this size."""
  return _split(tree, (size, tree.size - size), reason)


def _split(tree: Tree, sizes: Sequence[int], reason: Reason) -> list[Tree] | None:
  """Divides a tree into pieces and returns them; None where that cuts through a unit of its slowest factor."""
  if isinstance(tree, Units):
    pieces: list[Tree] = [Units(size) for size in sizes]
    unify(tree, Row(tuple(pieces)), reason)
    return pieces
  first, rest = seen(tree.parts[0]), tree.parts[1:]
  inner = math.prod(part.size for part in rest)
  if isinstance(tree, Row) or not isinstance(first, Units) or any(size % inner for size in sizes):
    return None
  slow = [Units(size // inner) for size in sizes]
  unify(first, row(slow), reason)
  return [product((part, *rest)) for part in slow]


def _distribute(a: Product, b: Row, reason: Reason) -> None:
  """Returns a product whose slowest factor is one axis after the other, as a row of products."""
  pieces = _split(a, [part.size for part in b.parts], reason)
  if pieces is None:
    block(a, reason)
    block(b, reason)
    return
  for piece, part in zip(pieces, b.parts, strict=True):
    unify(piece, part, reason)


def places(tree: Tree) -> dict[Units, np.ndarray]:
  """Returns for each run of units in an axis the unit that each index of the axis belongs to, -1 where to none."""
  tree = seen(tree)
  if isinstance(tree, Units):
    return {tree: np.arange(tree.size)}
  found: dict[Units, np.ndarray] = {}
  sizes = [part.size for part in tree.parts]
  for place, part in enumerate(tree.parts):
    before, after = sizes[:place], sizes[place + 1 :]
    for one, inner in places(part).items():
      if isinstance(tree, Product):
        whole = np.tile(np.repeat(inner, math.prod(after)), math.prod(before))
        if one in found:  # the same units along two factors: removing one cuts a cross out of the square
          block(one, Reason("reshape", "an axis that is flattened with itself"))
      else:
        whole = np.concatenate([np.full(sum(before), -1), inner, np.full(sum(after), -1)])
        whole = np.maximum(whole, found.get(one, -1))
      found[one] = whole
  return found
