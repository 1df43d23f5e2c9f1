"""A user's mistake is one sentence. This file imports the standard library only, so anything may import it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A mistake of the user's: its text is one sentence that names the key, path or file and what was expected.

  Programs print the sentence and exit with status 2; no traceback is shown.
  """


def nearest(name: str, choices: Iterable[str], most: int = 3) -> list[str]:
  """The choices that look most like `name`, best first (possibly none)."""
  choices = list(choices)
  found = difflib.get_close_matches(name, choices, n=most, cutoff=0.5)
  if not found:
    last = {c.rsplit("/", 1)[-1].rsplit(".", 1)[-1]: c for c in choices}
    found = [last[c] for c in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=most, cutoff=0.6)]
  return found


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
  """The sentence for a name that does not exist: "unknown loss 'hintn'; did you mean 'hinton'?"."""
  choices = sorted(choices)
  near = nearest(name, choices)
  if near:
    return UserError(f"unknown {kind} {name!r}; did you mean {' or '.join(repr(n) for n in near)}?")
  return UserError(f"unknown {kind} {name!r}; expected one of {', '.join(choices)}")
