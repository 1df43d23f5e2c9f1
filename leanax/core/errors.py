"""A user's mistake is one sentence. This file imports the standard library only, so anything may import it."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
  """A mistake of the user's: its text is one sentence that names the key, path or file and what was expected.

  Programs print the sentence and exit with status 2; no traceback is shown. What it quotes may come from a damaged
  file, so letters that cannot be printed, such as half a pair of UTF-16, stand as their escapes.
  """

  def __str__(self) -> str:
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in super().__str__())


def shown(value: object, most: int = 200) -> str:
  """Returns a value as it is written, in a sentence: shortened where it is long, as texts and numbers may be."""
  if isinstance(value, int) and value.bit_length() > 200:
    return f"a whole number of about 10^{int(value.bit_length() * 0.30103)}"
  try:
    text = repr(value)
  except ValueError:  # Python writes no number of more than a few thousand digits
    return f"a {type(value).__name__} with a number of thousands of digits"
  return text if len(text) <= most else f"{text[:most]}..."


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
