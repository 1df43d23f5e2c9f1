"""When the parts of a run were finished, and how long they took: run.json in its directory."""

import datetime
import sys
from pathlib import Path
from typing import Any

from leanax.core import files
from leanax.core.errors import UserError

FILE = "run.json"
LOST = "the report does not say when stages were finished"


def start(folder: Path) -> None:
  """Makes the file where there is none, with a warning where stages were finished already, whose times are lost."""
  if not (folder / FILE).exists():
    if any((folder / "files").glob("*.json")):
      print(f"warning: there is no {folder / FILE}; {LOST}", file=sys.stderr)
    files.keep(folder / FILE, {})


def note(folder: Path, name: str, seconds: float) -> None:
  """Notes that a part of a run was finished now; of one that was stopped the seconds are those since it was resumed."""
  finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  noted = {**read(folder), name: {"finished": finished, "seconds": seconds}}
  files.keep(folder / FILE, noted)


def read(folder: Path) -> dict[str, Any]:
  """Returns {part: {"finished", "seconds"}}, in the order of their ends; {} with a warning where they are damaged."""
  try:
    noted = files.kept(folder / FILE, LOST)
    if all(isinstance(one, dict) and {"finished", "seconds"} <= one.keys() for one in noted.values()):
      return noted
    error = UserError(f"{str(folder / FILE)!r} is damaged: it holds no times; {LOST}")
  except UserError as damaged:
    error = damaged
  print(f"warning: {error}", file=sys.stderr)
  files.keep(folder / FILE, {})
  return {}


def forget(folder: Path, name: str) -> None:
  """Removes what is noted of a part."""
  if name in (noted := read(folder)):
    files.keep(folder / FILE, {key: one for key, one in noted.items() if key != name})
