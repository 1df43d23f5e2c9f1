"""Values that are another one seen differently: in another shape or order of axes, times a constant, a part of it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class View(NamedTuple):
  """A value that the function does not have, made of one that it has.

  Attributes:
    number: of the value that it is made of.
    shape: its shape, with the batch that was traced.
    see: makes it of that value.
  """

  number: int
  shape: Shape
  see: Callable[[np.ndarray], np.ndarray]


class Link(NamedTuple):
  """A value that is another one in `shape` and then with its axes in another order; no layer makes it yet.

  Attributes:
    source: number of the other value, which a layer may read.
    shape: the shape before the axes change places.
    permutation: their order.
    parent: number of the value that the link was made of: what reads it is a reader of the source too.
  """

  source: int
  shape: Shape
  permutation: tuple[int, ...]
  parent: int

  def back(self, shape: Shape) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what makes the source, of `shape`, of the value."""
    order = tuple(np.argsort(self.permutation))
    return lambda value: value.transpose(order).reshape(shape)


class Affine(NamedTuple):
  """A value x * factor + offset that no layer makes yet; either may be None. Both are float64."""

  x: int
  factor: np.ndarray | None
  offset: np.ndarray | None


class Pick(NamedTuple):
  """A value that holds entries of another one: the other one's number, and which entries along which axes."""

  source: int
  entries: dict[int, np.ndarray]


def ordered(permutation: Sequence[int]) -> bool:
  """Returns whether all axes stay where they are."""
  return list(permutation) == sorted(permutation)


def composed(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
  """Returns the order of axes that is `first` and then `second`."""
  return tuple(first[axis] for axis in second)


def moved(shape: Shape, permutation: Sequence[int]) -> Shape:
  """Returns a shape with its axes in another order."""
  return tuple(shape[axis] for axis in permutation)
