"""Experiment configs: read from a file, changed from the command line, and made one typed tree (`Experiment`).

A config file has `get_config()` (or `get_config(argument)`) that returns a ConfigDict of plain values. An override
keeps the type of the value that it replaces. This module imports no jax: a mistake in a config answers at once.
"""

import ast
import importlib.util
import inspect
import math
import os
import pathlib
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from leanax.core import ranges
from leanax.core.errors import UserError, shown, unknown
from leanax.core.texts import elements
from leanax.pipeline.config import references, tree
from leanax.pipeline.config.experiment import Experiment

NAMES = ("name", "loss")  # keys of free groups that name a function
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def experiment(spec: str, changes: Iterable[tuple[str, str]] = ()) -> Experiment:
  """Returns the whole, checked experiment: its file, every key that the file leaves out, the changes.

  Args:
    spec: as in `configs/digits.py` or `configs/mnist.py:smoke`.
    changes: (dotted key, text) pairs.
  """
  return resolve(load(spec), changes)


def resolve(config: ml_collections.ConfigDict, changes: Iterable[tuple[str, str]] = ()) -> Experiment:
  """Returns the checked experiment of a config that names only what it sets; arguments as of `override`."""
  found = typed(override(complete(config), changes))
  references.check(found)
  return found


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the config with every key of an experiment.

  Raises:
    UserError: a key that does not exist, a value of another type, or no stage or model at all.
  """
  return ml_collections.ConfigDict(tree.complete(Experiment, config.to_dict()))


def typed(config: ml_collections.ConfigDict) -> Experiment:
  """Returns a complete config as dataclasses."""
  return tree.build(Experiment, config.to_dict())


def load(spec: str) -> ml_collections.ConfigDict:
  """Returns the config of `spec`, a path such as `configs/digits.py`, or `configs/mnist.py:smoke` to pass an argument.

  Raises:
    UserError: no such file, a bug in it (named by file and line), or no `get_config` that returns a ConfigDict.
  """
  path, _, argument = spec.partition(":")
  if not pathlib.Path(path).is_file():
    beside = sorted(str(p) for p in pathlib.Path(path).parent.glob("*.py") if p.stem != "__init__")
    raise unknown("config file", path, beside) if beside else UserError(f"config file {path!r} does not exist")
  try:
    module = _execute(path)
  except Exception as error:
    raise UserError(_where(path, error)) from error
  get_config = getattr(module, "get_config", None)
  if not callable(get_config):
    raise UserError(f"config file {path!r} has no function get_config()")
  if argument and not inspect.signature(get_config).parameters:
    raise UserError(f"config file {path!r} takes no argument, got {argument!r}")
  try:
    config = get_config(argument) if argument else get_config()
  except UserError:
    raise
  except Exception as error:
    raise UserError(_where(path, error)) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f"config file {path!r}: get_config() must return a ConfigDict, got {type(config).__name__}")
  return config


def _execute(path: str) -> Any:
  spec = importlib.util.spec_from_file_location("_experiment_config", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
  try:
    spec.loader.exec_module(module)
  finally:
    sys.dont_write_bytecode = written
  return module


def _where(path: str, error: Exception) -> str:
  """Returns one sentence for a bug in a config file: the innermost line of that file, and what went wrong there."""
  if isinstance(error, SyntaxError):
    return f"{error.filename}:{error.lineno}: {error.msg}"
  own = [
    f.lineno
    for f in traceback.extract_tb(error.__traceback__)
    if os.path.basename(f.filename) == os.path.basename(path)
  ]
  text = " ".join(str(error).split())
  return f"{path}:{own[-1] if own else 1}: {type(error).__name__}: {text}"


def override(config: ml_collections.ConfigDict, changes: Iterable[tuple[str, str]]) -> ml_collections.ConfigDict:
  """Changes values in place and returns the config, locked.

  Args:
    config: what `load` returned.
    changes: (dotted key, text) pairs, such as `("data.name", "digits")`; a group inside a sequence is named by its
      index, `stages.0.steps` or `stages[0].steps`. The text is read as the type of the present value; a tuple's
      elements as the type of the elements that it has, and a tuple of mixed types keeps its length. A key that a free
      group of an experiment lacks, such as a keyword of a model, is read as the function that it goes to says.

  Raises:
    UserError: an unknown key (the nearest is named), a group instead of a value, a wrong type, a number that is not
      finite, or a key given twice.
  """
  seen = set()
  named = [(re.sub(r"\[(\d+)\]", r".\1", key), text) for key, text in changes]
  # What names a function comes first: it tells the types of the function's keywords.
  for key, text in sorted(named, key=lambda change: change[0].split(".")[-1] not in (*NAMES, "schedule")):
    if key in seen:
      raise UserError(f"config key {key!r} is given twice")
    seen.add(key)
    _change(config, key, text)
  return config.lock()


def _change(config: ml_collections.ConfigDict, key: str, text: str) -> None:
  owner: Any = config
  *groups, last = key.split(".")
  for name in groups:
    owner = _child(owner, name)
  present = _child(owner, last)
  if owner is None or present is _MISSING:
    if depth := tree.free_group(Experiment, (*groups, last)):
      return _add(config, groups[:depth], [*groups[depth:], last], text)
    raise unknown("config key", key, dict(tree.leaves(config)))
  if isinstance(present, Mapping | ml_collections.ConfigDict):
    inside = ", ".join(f"{key}.{name}" for name in present)
    raise UserError(f"config key {key!r} is a group; set one of its keys: {inside}")
  kind = owner.get_type(last) if isinstance(owner, ml_collections.ConfigDict) else type(present)
  if isinstance(owner, Sequence):
    raise UserError(f"config key {key!r} is one element of {'.'.join(groups)!r}; give the whole value instead")
  field = tree.field_of(Experiment, (*groups, last))
  element = None if field is None else tree.element_type(field)
  owner[last] = parse(key, text, present, kind, LIKE.get(element))


def _add(config: ml_collections.ConfigDict, groups: list[str], names: list[str], text: str) -> None:
  """Adds a key to a free group, with the groups inside it that lead to the key.

  Raises:
    UserError: the function that the group goes to has no such parameter (the nearest is named), or one of another type.
  """
  from leanax.pipeline import keywords  # loads jax, which no other change on a command line needs

  owner: Any = config
  for name in groups:
    owner = _child(owner, name)
    if not isinstance(owner, ml_collections.ConfigDict):  # no such entry
      raise unknown("config key", ".".join([*groups, *names]), dict(tree.leaves(config)))
  where = ".".join(groups)
  for place, name in enumerate(names):
    names_function = groups[0] == "stages" and name in NAMES  # of which nothing is known yet
    known = None if names_function else keywords.parameters(where.split("."), config.to_dict())
    if known is not None and name not in known:
      raise unknown(f"key in {where!r}", name, known)
    kind = str if names_function else known[name].annotation if known else inspect.Parameter.empty
    where = f"{where}.{name}"
    if place == len(names) - 1:
      owner[name] = parse_annotated(where, text, kind)
      return
    if name not in owner:
      owner[name] = {}
    owner = owner[name]
    if not isinstance(owner, ml_collections.ConfigDict):
      raise UserError(f"config key {where!r} is {shown(owner)} and no group; expected a value for the key itself")


_MISSING = object()


def _child(owner: Any, name: str) -> Any:
  if isinstance(owner, Mapping | ml_collections.ConfigDict):
    return owner.get(name, _MISSING)
  if isinstance(owner, list | tuple) and name.isdigit() and int(name) < len(owner):
    return owner[int(name)]
  return _MISSING


# An element that stands for the others of a sequence.
LIKE: dict[Any, Any] = {int: 0, float: 0.0, str: "", bool: False, tuple[str, str]: ("", "")}


def parse(key: str, text: str, present: Any, kind: type, like: Any = None) -> Any:
  """Returns the value that `text` means for a key of type `kind` (known even while its value, `present`, is None).

  `like` stands for the elements of a sequence that has none at present.
  """
  if present is None and text.lower() == "none":
    return None
  if kind is type(None):
    return _literal(text)
  if issubclass(kind, tuple | list):
    return kind(_elements(key, text, present or (() if like is None else (like,))))
  return _scalar(key, text, kind)


def parse_annotated(key: str, text: str, annotation: Any) -> Any:
  """Returns the value that `text` means for a parameter: a Python literal where its annotation is no plain type.

  Args:
    key: the parameter's, for errors.
    text: as on a command line.
    annotation: such as `int`, `float | None`, `tuple[int, int]`, `Sequence[int]`, or `inspect.Parameter.empty`.

  Raises:
    UserError: the text is no such value.
  """
  union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
  options = typing.get_args(annotation) if union else (annotation,)
  kinds = [kind for kind in options if kind is not type(None)]
  if len(kinds) < len(options) and text.lower() == "none":
    return None
  kind = typing.get_origin(kinds[0]) or kinds[0]
  if len(kinds) > 1 or not isinstance(kind, type):
    return _literal(text)
  if kind in LIKE:
    return _scalar(key, text, kind)
  if not issubclass(kind, Sequence):
    return _literal(text)
  inner = typing.get_args(kinds[0])
  value = tuple(_elements(key, text, [LIKE[inner[0]]] if inner and inner[0] in LIKE else ()))
  if kind is tuple and inner and inner[-1] is not Ellipsis and len(value) != len(inner):
    raise UserError(f"config key {key!r} expects {len(inner)} values, got {len(value)} in {shown(text)}")
  return value


def _scalar(key: str, text: str, kind: type) -> Any:
  if kind is bool:
    if text.lower() not in BOOLEANS:
      raise UserError(f"config key {key!r} expects true or false, got {shown(text)}")
    return BOOLEANS[text.lower()]
  if kind in (int, float):
    try:
      value = kind(text)
    except ValueError:
      raise UserError(f"config key {key!r} expects {_name(kind)}, got {shown(text)}") from None
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"config key {key!r} expects a finite number, got {shown(text)}")
    return value
  return text


def _elements(key: str, text: str, present: Sequence[Any]) -> list[Any]:
  """Returns the elements of a tuple override, each as the type of the element it replaces."""
  value = _literal(text if text.lstrip().startswith(("(", "[")) else f"({text.rstrip().removesuffix(',')},)")
  if isinstance(value, str):  # words without quotes
    try:
      value = tuple(elements(_unwrapped(text)))
    except ValueError:
      raise UserError(f"config key {key!r} got {shown(text)}, which has parentheses without a counterpart") from None
  if not isinstance(value, tuple | list):
    value = (value,)
  kinds = {type(element) for element in present}
  if len(kinds) > 1 and len(value) != len(present):
    raise UserError(
      f"config key {key!r} expects {len(present)} values like {tuple(present)}, got {len(value)} in {shown(text)}"
    )
  likes = list(present) if len(kinds) > 1 else list(present[:1]) * len(value)
  if not likes:
    return list(value)
  return [_like(key, element, like, text) for element, like in zip(value, likes, strict=True)]


def _unwrapped(text: str) -> str:
  """Returns words without the parentheses or brackets around all of them."""
  text = text.strip()
  return text[1:-1] if text[:1] in ("(", "[") and text[-1:] in (")", "]") else text


def _like(key: str, value: Any, like: Any, text: str) -> Any:
  if isinstance(like, float) and type(value) is int:
    ranges.check(f"config key {key!r}", value, ranges.FINITE)
    value = float(value)
  if type(value) is not type(like) or (isinstance(value, float) and not math.isfinite(value)):
    raise UserError(f"config key {key!r} expects {_name(type(like))} in its place, got {shown(value)} in {shown(text)}")
  if not isinstance(like, tuple | list):
    return value
  if len(value) != len(like):
    raise UserError(f"config key {key!r} expects {len(like)} values like {like!r}, got {shown(value)} in {shown(text)}")
  return type(like)(_like(key, v, present, text) for v, present in zip(value, like, strict=True))


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _name(kind: type) -> str:
  names = {int: "an int", float: "a float", str: "a string", bool: "true or false"}
  return names.get(kind, f"a {kind.__name__}")
