"""The kind of a criterion: a score for each entry of a parameter, the largest of which are kept."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from leanax.core.errors import UserError


class ScoreFn(Protocol):
  """The scores of one leaf when a mask is due."""

  def __call__(self, w: jax.Array, g: jax.Array, memory: Any, *, step: jax.Array, key: jax.Array) -> jax.Array:
    """Returns floats of w's shape; `step` counts optimizer updates, `key` is the leaf's own at this mask update."""
    ...


def no_memory(w: jax.Array) -> Any:
  """Returns the memory of a criterion that remembers nothing."""
  del w
  return ()


@dataclasses.dataclass(frozen=True)
class Score:
  """A criterion.

  Attributes:
    score: `score(w, g, memory, *, step, key)` when a mask update is due, of w's shape. The largest are kept. g is the
      gradient as the optimizer is given it, that of pruned entries too.
    init: `init(w) -> memory`, any tree of arrays.
    update: `update(memory, w, g) -> memory` in each step; None where nothing is remembered.
    absolute: whether scores are ranked by their magnitude. Saves the memory of |score|, a copy of the leaf.
    reads_gradient: whether `score` or `update` reads g; where not, `score` is given None for it.
  """

  score: ScoreFn
  init: Callable[[jax.Array], Any] = no_memory
  update: Callable[[Any, jax.Array, jax.Array], Any] | None = None
  absolute: bool = False
  reads_gradient: bool = True

  def of(self, name: str, w: jax.Array, g: Any, memory: Any, *, step: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the scores of the leaf `name`.

    Raises:
      UserError: they have another shape, or are no floats.
    """
    scores = self.score(w, g, memory, step=step, key=key)
    if jnp.shape(scores) != w.shape or not jnp.issubdtype(jnp.result_type(scores), jnp.floating):
      raise UserError(
        f"the criterion scores {name!r} with {jnp.result_type(scores)}{list(jnp.shape(scores))}; expected floats of "
        f"its shape, {list(w.shape)}"
      )
    return scores


def wide(x: jax.Array) -> jax.Array:
  """Returns `x` in the type that products and sums of scores are computed in: float64 stays, all else is float32."""
  return x.astype("float64" if x.dtype == jnp.float64 else "float32")


def check_score(what: str, score: Any) -> Score:
  """Returns `score`.

  Raises:
    UserError: it is not a criterion.
  """
  if not isinstance(score, Score):
    raise UserError(f"{what} is {score!r}; expected a criterion, such as sparsity.criteria.magnitude()")
  return score
