"""A network as two pure functions, and the keywords that switch flax modules between training and evaluation."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from leanax.core.errors import UserError

Variables = dict[str, Any]


class Model(NamedTuple):
  """A network as functions.

  init(key, x) -> variables: `{"params": tree, <other collections>: tree}`; x is a batch of any values.
  apply(variables, x, *, train=False, key=None) -> (logits, model_state): model_state is the variables without
    "params", updated if `train`; `key` seeds dropout and every other random stream, in training only.
  """

  init: Callable[..., Variables]
  apply: Callable[..., tuple[Any, Variables]]


# Keywords of flax modules for the mode, and whether True means training.
MODES: dict[str, bool] = {
  "train": True,
  "training": True,
  "is_training": True,
  "deterministic": False,
  "use_running_average": False,
}


def modes(train: bool, accepted: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the mode keywords among `accepted`, with their values."""
  return {name: train is positive for name, positive in MODES.items() if name in accepted}


def check_call(spec: str, call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
  """Returns the parameters of a module's `__call__` after `self`; refuses further required ones."""
  parameters = dict(list(inspect.signature(call).parameters.items())[1:])
  for name, parameter in list(parameters.items())[1:]:
    optional = parameter.default is not parameter.empty or parameter.kind in (
      parameter.VAR_KEYWORD,
      parameter.VAR_POSITIONAL,
    )
    if not optional and name not in MODES:
      raise UserError(
        f"model {spec!r}: __call__ needs the argument {name!r}; a model is called with one batch and, if it asks, "
        f"one of {', '.join(MODES)}"
      )
  return parameters


def check_state(spec: str, before: Variables, after: Variables) -> None:
  """Refuses a model whose state changes its structure when it is called: each step would compile anew."""
  for name in before:
    if jax.tree.structure(before[name]) != jax.tree.structure(after[name]):
      raise UserError(
        f"model {spec!r}: collection {name!r} changes its structure when the model is called (values collected by "
        "sow()?); expected state of a fixed structure"
      )
