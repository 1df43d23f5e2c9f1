"""Ordered rules: the one way in which parameters and sites are selected anywhere in the project."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from leanax.core.errors import UserError, nearest


class Match(NamedTuple):
  """The setting that a name received, and the rule it came from (its index and its glob)."""

  setting: Any
  index: int
  glob: str


def match(rules: Sequence[tuple[str, Any]], names: Iterable[str], what: str = "rule") -> dict[str, Match]:
  """Gives each name the setting of the first rule whose glob it matches; names without a rule are left out.

  Args:
    rules: ordered (glob, setting) pairs; `*` crosses `/`, matching is case-sensitive.
    names: the names there are, such as parameter paths (`head/kernel`).
    what: the name of a rule in errors, such as "quantization rule".

  Raises:
    UserError: a rule is no pair, matches nothing, or everything it matches was taken by an earlier rule.
  """
  if not isinstance(rules, Iterable):
    raise UserError(f"{what}s are {rules!r}; expected (glob, setting) pairs")
  for rule in rules:
    if not (isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[0], str)):
      raise UserError(f"{what} {rule!r} is no pair; expected (glob, setting)")
  names = list(names)
  found: dict[str, Match] = {}
  for index, (glob, setting) in enumerate(rules):
    hits = [name for name in names if fnmatch.fnmatchcase(name, glob)]
    fresh = [name for name in hits if name not in found]
    if not hits:
      near = nearest(glob.strip("*/"), names) or names[:3]
      raise UserError(f"{what} {glob!r} matches nothing; names near it: {', '.join(near) or 'none'}")
    if not fresh:
      earlier = found[hits[0]].glob
      raise UserError(f"{what} {glob!r} never applies: an earlier rule, {earlier!r}, takes {', '.join(hits[:3])}")
    found.update({name: Match(setting, index, glob) for name in fresh})
  return {name: found[name] for name in names if name in found}
