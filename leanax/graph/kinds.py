"""The kinds of methods that several packages share: a method says what it is by the dataclass that it returns."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax


@dataclasses.dataclass(frozen=True, eq=False)
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
    """Returns whether the order of the batches matters, as in a moving average."""
    return self.merge is None


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
