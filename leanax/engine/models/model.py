"""A user's model by import path, behind two pure functions.

`load("my_package.nets:Net", {"width": 64})` accepts a flax.linen Module class, a flax.nnx Module class, a
`functools.partial` or a function that returns a linen module, or a plain factory that returns `(init, apply)`. The
result is always a `Model`; the user's model code does not change.
"""

import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from leanax.core import imports
from leanax.core.errors import UserError
from leanax.engine.models.interface import MODES, Model, Variables, check_call, check_state, modes


def load(spec: str, kwargs: Mapping[str, Any] | None = None) -> Model:
  """Imports and builds a model.

  Args:
    spec: "package.module:Name". Name is a linen Module class, an nnx Module class (a function with an `rngs` keyword
      counts as one), a partial of either, a function that returns a linen module, or a factory `Name(**kwargs) ->
      (init, apply)` with `init(key, x) -> variables` and `apply(variables, x[, train=][, key=]) -> logits` or `->
      (logits, model_state)`.
    kwargs: keyword arguments of Name.

  Raises:
    UserError: the module or the name does not exist, it is neither a Module class nor a function, a keyword is not
      accepted or is missing, or the result is not a model.
  """
  kwargs = dict(kwargs or {})
  target = _find(spec)
  if _is_nnx(target):
    from leanax.engine.models import nnx_model  # importing nnx takes a second

    _check_keywords(spec, target, kwargs, given=("rngs",))
    return nnx_model.adapt(spec, functools.partial(target, **kwargs))
  _check_keywords(spec, target, kwargs, given=MODES)
  # Some modules take the mode when they are built and not when they are called; keywords of the user have priority.
  fields = {name: p for name, p in _parameters(target).items() if name in MODES and name not in kwargs}
  built = {train: target(**kwargs, **modes(train, fields)) for train in ((False, True) if fields else (False,))}
  return adapt_linen(spec, built) or _adapt_functions(spec, built[False])


def permit(spec: Any, code: Collection[str], source: str) -> None:
  """Refuses an import path from a data file, unless the user has named it too or it is a model of `zoo`.

  Importing a module runs it, and files may be untrusted.

  Args:
    spec: the import path in the file.
    code: the import paths that the user has named, in a config or by a flag.
    source: the file's name in error messages.

  Raises:
    UserError: the path is not permitted; tells how to permit it.
  """
  if not isinstance(spec, str):
    raise UserError(f"{source} is damaged: its model is {spec!r}; expected an import path such as 'zoo.lenet:LeNet5'")
  if spec not in ((code,) if isinstance(code, str) else code) and not _of_zoo(spec):
    raise UserError(
      f"{source} holds a model of {spec!r}, code that is not run unless you name it: pass --model_code={spec}, or add "
      "it to 'models' in a config"
    )


def _of_zoo(spec: str) -> bool:
  """Returns whether `spec` is "zoo.FILE:NAME" of a file of `leanax.zoo`, with a name that the file itself defines."""
  given, _, name = spec.partition(":")
  module_name = _full(given)
  if module_name not in _zoo():
    return False
  return getattr(vars(importlib.import_module(module_name)).get(name), "__module__", None) == module_name


def _full(module_name: str) -> str:
  """Expands "zoo.FILE" to `leanax.zoo.FILE`, unless the file exists only in a user's own package `zoo`."""
  ours = module_name.startswith("zoo.") and importlib.util.find_spec("zoo") is None
  return full if (full := f"leanax.{module_name}") in _zoo() or ours else module_name


def _zoo() -> set[str]:
  from leanax import zoo

  return {f"{zoo.__name__}.{module.name}" for module in pkgutil.iter_modules(zoo.__path__)}


def _find(spec: str) -> Callable[..., Any]:
  """Imports the model at "package.module:Name"."""
  target = imports.found(spec, f"model {spec!r}", _full(spec.partition(":")[0]))
  if not _builds_models(_unwrap(target)):
    kind = "class that is no Module" if isinstance(target, type) else type(target).__name__
    raise UserError(f"model {spec!r} is a {kind}; expected a linen or nnx Module class, a partial of one or a function")
  return target


def _unwrap(target: Any) -> Any:
  while isinstance(target, functools.partial):
    target = target.func
  return target


def _builds_models(plain: Any) -> bool:
  """Returns whether this is a Module class or a Python function; other callables are not called."""
  if isinstance(plain, type):
    modules = [sys.modules.get(name) for name in ("flax.linen", "flax.nnx")]  # imported with the class
    return issubclass(plain, tuple(module.Module for module in modules if module is not None))
  return inspect.isfunction(inspect.unwrap(plain)) or inspect.ismethod(plain)


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
  """Returns the parameters of a call of `target`; nnx's metaclass hides those of `__init__`."""
  plain = _unwrap(target)
  if not isinstance(plain, type):
    return inspect.signature(target).parameters
  given = target.keywords if isinstance(target, functools.partial) else {}
  return inspect.signature(functools.partial(plain.__init__, None, **given)).parameters


def _is_nnx(target: Any) -> bool:
  """Returns whether `target` builds an nnx module, without importing nnx if it is not used."""
  nnx = sys.modules.get("flax.nnx")
  plain = _unwrap(target)
  if isinstance(plain, type):
    return nnx is not None and issubclass(plain, nnx.Module)
  return nnx is not None and "rngs" in _parameters(plain)


def keywords(spec: str) -> dict[str, inspect.Parameter] | None:
  """Returns the keywords that a model takes, by name; None where it takes any. Errors as of `load`."""
  names, anything = _keywords(_find(spec))
  return None if anything else names


def _keywords(target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
  """Returns the keywords of a call of `target`, and whether it takes any others too."""
  parameters = _parameters(target)
  hidden = {"parent", "name", "rngs"}  # linen's own fields, and nnx's random streams
  kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
  names = {name: one for name, one in parameters.items() if name not in hidden and one.kind in kinds}
  return names, any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _check_keywords(spec: str, target: Any, kwargs: Mapping[str, Any], given: Any) -> None:
  """Compares `kwargs` with the signature before anything is built; adapters pass the keywords in `given`."""
  names, anything = _keywords(target)
  for name in kwargs:
    if name not in names and not anything:
      accepted = ", ".join(names) or "none"
      raise UserError(f"model {spec!r} does not take the keyword {name!r}; it takes: {accepted}")
  for name, parameter in names.items():
    if parameter.default is parameter.empty and name not in kwargs and name not in given:
      raise UserError(f"model {spec!r} needs the keyword {name!r}, which is missing")


def adapt_linen(spec: str, built: Mapping[bool, Any]) -> Model | None:
  """Returns the model of linen modules (for evaluation and, where it differs, for training); None for other types."""
  from flax import linen as nn
  from flax.core import meta

  evaluated, trained = built[False], built.get(True, built[False])
  if not isinstance(evaluated, nn.Module):
    return None
  accepted = check_call(spec, type(evaluated).__call__)

  def init(key: jax.Array, x: Any) -> Variables:
    streams = {"params": key, "dropout": jax.random.fold_in(key, 1)}
    variables = evaluated.init(streams, x, **modes(False, accepted))
    return dict(meta.unbox({"params": {}, **variables}))

  def apply(
    variables: Variables, x: Any, *, train: bool = False, key: jax.Array | None = None
  ) -> tuple[Any, Variables]:
    state = {name: tree for name, tree in variables.items() if name != "params"}
    call = modes(train, accepted)
    if not train:
      return evaluated.apply(variables, x, **call), state
    # linen uses the stream "params" for any stream that is not given by name
    streams = None if key is None else {"dropout": key, "params": jax.random.fold_in(key, 1)}
    logits, updated = trained.apply(variables, x, **call, rngs=streams, mutable=list(state))
    after = {**state, **updated}
    check_state(spec, state, after)
    return logits, after

  return Model(init, apply)


def _adapt_functions(spec: str, pair: Any) -> Model:
  """Returns the model of a plain factory's pair of functions."""
  if not (isinstance(pair, tuple) and len(pair) == 2 and all(map(callable, pair))):
    raise UserError(
      f"model {spec!r} builds a {type(pair).__name__}; expected a linen Module, an nnx Module, or (init, apply)"
    )
  user_init, user_apply = pair
  accepted = inspect.signature(user_apply).parameters

  def init(key: jax.Array, x: Any) -> Variables:
    variables = user_init(key, x)
    if not (isinstance(variables, Mapping) and "params" in variables):
      raise UserError(f"model {spec!r}: init must return {{'params': tree, ...}}, not a {type(variables).__name__}")
    return dict(variables)

  def apply(
    variables: Variables, x: Any, *, train: bool = False, key: jax.Array | None = None
  ) -> tuple[Any, Variables]:
    state = {name: tree for name, tree in variables.items() if name != "params"}
    keywords = modes(train, accepted) | ({"key": key} if "key" in accepted else {})
    out = user_apply(variables, x, **keywords)
    logits, after = out if isinstance(out, tuple) else (out, state)
    after = {**state, **after} if train else state
    check_state(spec, state, after)
    return logits, after

  return Model(init, apply)
