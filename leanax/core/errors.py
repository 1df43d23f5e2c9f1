"""A user's mistake is one sentence. This file loads the standard library only, so anything may import it."""

import difflib
from collections.abc import Iterable
from typing import Any

from leanax.core.texts import shown


class UserError(Exception):
  """A mistake of the user's: its text is one sentence that names the key, path or file and what was expected.

  Programs print the sentence and exit with status 2; no traceback is shown. What it quotes may come from a damaged
  file, so letters that cannot be printed, such as half a pair of UTF-16, stand as their escapes.
  """

  def __str__(self) -> str:
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in super().__str__())


def nearest(name: str, choices: Iterable[str], most: int = 3, cutoff: float = 0.5) -> list[str]:
  """Returns the choices that look most like `name`, best first; possibly none, but with `cutoff` 0."""
  choices = list(choices)
  found = difflib.get_close_matches(name, choices, n=most, cutoff=cutoff)
  if not found:
    last = {c.rsplit("/", 1)[-1].rsplit(".", 1)[-1]: c for c in choices}
    found = [last[c] for c in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=most, cutoff=0.6)]
  return found


MANY = 12


def unknown(kind: str, name: Any, choices: Iterable[str], listed: str = "") -> UserError:
  """Returns the sentence for a name that does not exist: "unknown loss 'hintn'; did you mean 'hinton'?".

  Args:
    kind: the kind of object that the name is of.
    name: as given; what is no text is none of the choices.
    choices: the names that there are.
    listed: where all are described; named in place of a list that would be long.
  """
  choices = sorted(choices)
  given = name if isinstance(name, str) else shown(name)
  near = nearest(given, choices)
  if near:
    return UserError(f"unknown {kind} {shown(name)}; did you mean {' or '.join(repr(n) for n in near)}?")
  if listed and len(choices) > MANY:
    some = ", ".join(map(repr, nearest(given, choices, cutoff=0.0)))
    return UserError(f"unknown {kind} {shown(name)}; the nearest of {len(choices)} are {some}: see {listed}")
  return UserError(f"unknown {kind} {shown(name)}; expected one of {', '.join(choices)}")
