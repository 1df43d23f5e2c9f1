"""From a ConfigDict to dataclasses and back: keys filled in with defaults, misspelt ones named, values checked.

The whole tree is filled in before the command line is read, so that any key can be changed there, and a misspelt key in
a config file is found whatever it was meant to change. This module imports no jax.
"""

import dataclasses
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ml_collections

from leanax.core import ranges
from leanax.core.errors import UserError, shown, unknown

Group = TypeVar("Group")
_GROUPS = Mapping | ml_collections.ConfigDict


def setting(
  default: Any,
  within: ranges.Range | None = None,
  *,
  choices: tuple[str, ...] = (),
  what: str = "choice",
  key: str = "",
  lengths: tuple[int, ...] = (),
) -> Any:
  """Describes a key of a group, as a field of its dataclass.

  Args:
    default: its value where a config leaves it out; a value given instead has its type.
    within: the numbers that it may be; of a sequence, its elements.
    choices: the texts that it may be.
    what: the name of a choice in errors.
    key: its name in a config, where that is no name of Python's.
    lengths: the numbers of elements that it may have, of a sequence; () for any.
  """
  told = {"range": within, "choices": choices, "what": what, "key": key, "lengths": lengths}
  return dataclasses.field(default=default, metadata=told)


def free(default: Mapping[str, Any] | None = None) -> Any:
  """Describes a group whose keys belong to the function that it names; an empty one is its default."""
  return dataclasses.field(default_factory=lambda: dict(default or {}), metadata={"free": True, "default": default})


def entries(group: type) -> Any:
  """Describes a group with any names, each of which is a `group`."""
  return dataclasses.field(default_factory=dict, metadata={"entries": group})


def complete(group: type, given: Any, where: str = "") -> dict[str, Any]:
  """Returns all keys of a group with their values, as plain data.

  Args:
    group: a dataclass of settings.
    given: the keys that a config names.
    where: the group's own key, for errors.

  Raises:
    UserError: a key that does not exist (the nearest is named), or a value of another type.
  """
  given = _mapping(given, where)
  fields = {_key(field): field for field in dataclasses.fields(group)}
  for key in given:
    if key not in fields:
      raise unknown("config key", _join(where, key), [_join(where, name) for name in fields])
  return {key: _value(field, given, _join(where, key)) for key, field in fields.items()}


def _value(field: Any, given: Mapping[str, Any], where: str) -> Any:
  key, inner = _key(field), field.metadata.get("entries")
  if inner is not None:
    if not isinstance(given.get(key), Mapping) or not given[key]:
      raise UserError(f"config key {where!r} is missing; expected a group with an entry for each of the {where}")
    return {name: complete(inner, value, _join(where, name)) for name, value in given[key].items()}
  if field.metadata.get("free"):
    default = field.metadata["default"]
    value = {} if key not in given or (default and given[key] is None) else _mapping(given[key], where)
    return copied(value or default or {})
  if dataclasses.is_dataclass(field.default):
    return complete(type(field.default), given.get(key, {}), where)
  return copied(_like(given[key], field.default, where) if key in given else field.default)


def build(group: type[Group], values: Mapping[str, Any]) -> Group:
  """Returns the dataclass of a group from all of its values (`complete`)."""
  made = {}
  for field in dataclasses.fields(group):  # type: ignore[arg-type]
    value, inner = values[_key(field)], field.metadata.get("entries")
    if inner is not None:
      value = {name: build(inner, each) for name, each in value.items()}
    elif dataclasses.is_dataclass(field.default):
      value = build(type(field.default), value)
    made[field.name] = value
  return group(**made)


def values(group: Any) -> dict[str, Any]:
  """Returns the entries of a group, which may be a dataclass, a ConfigDict or a mapping, sorted by their keys."""
  if dataclasses.is_dataclass(group):
    found = {_key(field): getattr(group, field.name) for field in dataclasses.fields(group)}
  else:
    found = {str(name): group[name] for name in group}
  return {key: found[key] for key in sorted(found)}


def is_group(value: Any) -> bool:
  """Returns whether a value has entries (`values`)."""
  return isinstance(value, _GROUPS) or dataclasses.is_dataclass(value)


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields (dotted key, value) of every value; groups inside sequences are walked too, plain sequences are values."""
  if is_group(value):
    children = list(values(value).items())
  elif isinstance(value, list | tuple) and any(is_group(child) for child in value):
    children = [(str(index), child) for index, child in enumerate(value)]
  else:
    yield prefix, value
    return
  for name, child in children:
    yield from leaves(child, _join(prefix, name))


def check(group: Any, where: str = "") -> None:
  """Refuses numbers outside of their ranges, texts that are no choice, and sequences of other elements than a key has,
  in a dataclass and the groups inside it.

  The entries of `entries` are left to the caller.

  Raises:
    UserError: names the key and what it may be.
  """
  for field in dataclasses.fields(group):
    value, place = getattr(group, field.name), _join(where, _key(field))
    if dataclasses.is_dataclass(value):
      check(value, place)
    if (choices := field.metadata.get("choices")) and value not in choices:
      raise unknown(f"{field.metadata['what']} in {place!r}", value, choices)
    several = isinstance(value, tuple | list)
    if several and (lengths := field.metadata.get("lengths")) and len(value) not in lengths:
      raise UserError(
        f"config key {place!r} is {shown(value)}; expected {' or '.join(map(str, lengths))} elements, got {len(value)}"
      )
    for name, one in [(f"{place}[{i}]", x) for i, x in enumerate(value)] if several else [(place, value)]:
      if expected := field.metadata.get("range"):
        ranges.check(f"config key {name!r}", one, expected)
      elif several and not _is_like(one, element := element_type(field)):
        raise UserError(f"config key {name!r} is {shown(one)}; expected {WORDS[element]}")


# Of the elements that have no range.
WORDS = {str: "a text", tuple[str, str]: "a pair of texts", tuple[Any, ...]: "such as (pattern, replacement)"}


def element_type(field: Any) -> Any:
  """Returns the type of the elements of a key that is a sequence, such as `float`; None where they have none."""
  inner = typing.get_args(field.type)[:1] if typing.get_origin(field.type) is tuple else ()
  return None if not inner or inner[0] is Any else inner[0]


def _is_like(value: Any, element: Any) -> bool:
  parts = typing.get_args(element)
  if parts and parts[-1] is ...:
    return isinstance(value, tuple | list)
  if parts:
    return isinstance(value, tuple | list) and len(value) == len(parts) and all(map(isinstance, value, parts))
  return element is None or isinstance(value, element)


def field_of(group: type, names: Sequence[str]) -> Any:
  """Returns the field that a key is, of the dataclass of the whole tree; None where it is none, such as a free key.

  Args:
    group: the dataclass.
    names: of the key, as ("stages", "student", "epochs").
  """
  return next((field for field, depth in _path(group, names) if depth == len(names)), None)


def _path(group: type, names: Sequence[str]) -> Iterator[tuple[Any, int]]:
  """Yields the fields that lead to a key, each with the number of names that lead to it."""
  inner: Any = group
  depth = 0
  while inner is not None and depth < len(names):
    field = next((one for one in dataclasses.fields(inner) if _key(one) == names[depth]), None)
    if field is None:
      return
    depth += 1
    yield field, depth
    entry = field.metadata.get("entries")  # below its names, which may be any
    inner = entry or (type(field.default) if dataclasses.is_dataclass(field.default) else None)
    depth += 1 if entry else 0


def copied(value: Any) -> Any:
  """Returns a copy in which no group is another one: a file may name a group twice, but a change is meant for one."""
  if isinstance(value, _GROUPS):
    return {key: copied(child) for key, child in value.items()}
  return type(value)(map(copied, value)) if isinstance(value, tuple | list) else value


def free_group(group: type, names: Sequence[str]) -> int | None:
  """Returns how many of a key's names lead to the free group that it is in; None where it is in none.

  Args:
    group: the dataclass of the whole tree.
    names: of the key, as ("models", "student", "kwargs", "width").
  """
  free = (depth for field, depth in _path(group, names) if field.metadata.get("free"))
  return next((depth for depth in free if depth < len(names)), None)


def _key(field: Any) -> str:
  return field.metadata.get("key") or field.name


def _join(where: str, key: str) -> str:
  return f"{where}.{key}" if where else key


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
  if not isinstance(value, Mapping):
    raise UserError(f"config key {where!r} must be a group, got {shown(value)}")
  return value


def _like(value: Any, default: Any, where: str) -> Any:
  """Returns the value, if it has the default's type (an int may stand for a float)."""
  if isinstance(default, float) and type(value) in (int, float):
    if not abs(value) <= sys.float_info.max:  # the key's own range is checked with all others
      ranges.check(f"config key {where!r}", value, ranges.FINITE)
    return float(value)
  if type(value) is type(default):
    return value
  raise UserError(f"config key {where!r} expects {type(default).__name__}, got {shown(value)}")
