"""The kinds of methods that several packages share: a method says what it is by the dataclass that it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True, eq=False)
class Statistic:
  """A number, or an array of numbers, gathered from a tensor over many batches (`graph.observe`).

  A state is a tree of arrays whose size does not depend on the number of batches. Inside a scan the states of the
  layers are stacked along leading axes, so that `merge` and `value` have to broadcast over those.

  Attributes:
    name: the key of the result; of two statistics of one tensor the names have to differ (`dataclasses.replace`).
    init: `init(x: jax.ShapeDtypeStruct) -> state` before the first batch, a neutral element of `merge`.
    update: `update(state, x, axis_name) -> state`; `x` is float32, and each device of `axis_name` has an equal share of
      the batch. Every device returns the state of the whole batch.
    merge: `merge(state, state) -> state` of two disjoint sets of batches; None where their order matters.
    value: `value(state) -> numpy arrays`, on the host.
    rows: reads the rows that a site multiplies by its kernel, (groups, positions, in), and no other tensor.
  """

  name: str
  init: Callable[[jax.ShapeDtypeStruct], Any]
  update: Callable[[Any, jax.Array, str | None], Any]
  merge: Callable[[Any, Any], Any] | None
  value: Callable[[Any], Any]
  rows: bool = False

  @property
  def ordered(self) -> bool:
    """Whether the order of the batches matters, as in a moving average."""
    return self.merge is None
