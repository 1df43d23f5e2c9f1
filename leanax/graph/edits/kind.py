"""The net that an edit changes, as far as its kind needs to know."""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np

from leanax.core.errors import UserError

Edit = dict[str, Any]  # plain data that JSON can hold; "edit" is the kind


class Editable(Protocol):
  """A `graph.Net`: the function in evaluation mode, its variables and an example of its inputs."""

  @property
  def variables(self) -> Any:
    """A tree of arrays."""

  @property
  def example(self) -> tuple[Any, ...]:
    """Inputs, or their shapes."""

  def infer(self, variables: Any, *inputs: Any) -> Any:
    """Returns the output in evaluation mode."""

  def edited(self, edits: Sequence[Edit], variables: Any) -> Self:
    """Returns the net with further edits, and the variables after them."""
    ...


def check_net(net: Any) -> None:
  """Refuses what is no net.

  Raises:
    UserError: names the type of what was given.
  """
  if not hasattr(net, "edited"):
    raise UserError(
      f"the net is a {type(net).__name__}; expected a graph.Net, of graph.net(fn, variables, x) or "
      "engine.models.net(module, variables, x)"
    )


def as_array(given: Any) -> np.ndarray:
  """Returns an array of what a user gives for indices, of objects where it is none: rows of different lengths."""
  try:
    return np.asarray(given)
  except ValueError:
    return np.asarray(given, object)
