"""Kinds of methods that several packages share. A method declares its kind by what it returns."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax


class ReparamFn(Protocol):
  """The parameters that the model is applied with."""

  def __call__(self, params: Any, aux: Any, *, step: Any, key: Any, train: bool) -> tuple[Any, Any]:
    """Returns parameters of the structure, shapes and dtypes of `params`, and what is remembered, {} for nothing."""
    ...


@dataclasses.dataclass(frozen=True)
class Reparam:
  """A weight as a function of what is trained: soft thresholds, gates, latent weights.

      new, state = reparam.forward(params, aux, step=step, key=key, train=True)
      loss = loss_fn(apply(new, x)) + reparam.penalty(aux)

  Both `params` and `aux` are trained. What is evaluated and exported is `forward(..., train=False)`, in which `step`
  and `key` play no part.

  Attributes:
    init: `init(params) -> aux`, a tree of arrays.
    forward: `forward(params, aux, *, step, key, train) -> (params, state)`; `step` counts optimizer updates.
    penalty: `penalty(aux)`, a scalar that is added to the loss.
  """

  init: Callable[[Any], Any]
  forward: ReparamFn
  penalty: Callable[[Any], jax.Array]
