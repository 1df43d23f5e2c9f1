"""The parameters of the functions that the free groups of a config go to: the types of values on a command line."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import kd
import sparsity
from leanax.core import imports
from leanax.core.methods import method
from leanax.engine import data as datasets
from leanax.engine.models import model as models
from leanax.pipeline import optimizers

Parameters = Mapping[str, inspect.Parameter]


def parameters(groups: Sequence[str], config: Mapping[str, Any]) -> Parameters | None:
  """Returns the parameters that the keys of a free group name; None where the config names no function for it.

  Args:
    groups: the group's key, as ("models", "student", "kwargs").
    config: all values of the experiment.

  Raises:
    UserError: the config names a function that is not there.
  """
  own: Any = config
  for name in groups:
    own = own.get(name) or {}
  match list(groups):
    case ["data", "kwargs"]:
      return datasets.parameters(config["data"]["name"])
    case ["models", name, "kwargs"]:
      return models.keywords(config["models"][name]["name"])
    case ["stages", _, "objective", term]:
      name = own.get("loss", term)
      found = imports.found(name, f"loss {name!r}") if imports.is_path(name) else method(kd, name, folder="losses")
      return {
        **_of(found),
        **_of(kd.Term, "name", "loss"),
      }
    case ["stages", _, "objective", _, _]:
      return _named(kd.schedules, own)
    case ["stages", name, "sparsity"] if config["stages"][name]["kind"] == "mask":
      return _of(sparsity.mask, "variables")
    case ["stages", _, "sparsity"]:
      return _of(optimizers.sparse_method(own["name"]), "inner") if own.get("name") else None
    case ["stages", _, "sparsity", "schedule"]:
      return _named(sparsity.schedules, own)
    case ["stages", _, "sparsity", part] if part in optimizers.PARTS:
      return _named(optimizers.PARTS[part], own)
    case ["stages", name, "optimizer", ("kwargs" | "schedule_kwargs") as key]:
      kind = "optimizer" if key == "kwargs" else "schedule"
      spec = config["stages"][name]["optimizer"]["name" if kind == "optimizer" else "schedule"]
      return _of(optimizers.own(spec, kind), "learning_rate", "steps") if imports.is_path(spec) else None
    case ["stages", _, "reparam"]:
      return _named(sparsity.reparam, own)
  return None


def _named(package: ModuleType, group: Mapping[str, Any]) -> Parameters | None:
  """Returns the parameters of the method that a group names."""
  return _of(method(package, group["name"])) if group.get("name") else None


def _of(fn: Callable[..., Any], *without: str) -> Parameters:
  try:
    signature = inspect.signature(fn, eval_str=True)
  except NameError:  # an annotation that only a type checker can read
    signature = inspect.signature(fn)
  return {name: found for name, found in signature.parameters.items() if name not in without}
