"""When the parts of a run were finished, and how long they took: run.json in its directory."""

import datetime
import json
from pathlib import Path
from typing import Any

from leanax.core import files

FILE = "run.json"


def note(folder: Path, name: str, seconds: float) -> None:
  """Notes that a part of a run was finished now; of one that was stopped the seconds are those since it was resumed."""
  finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  noted = {**read(folder), name: {"finished": finished, "seconds": seconds}}
  files.write(folder / FILE, json.dumps(noted, indent=1) + "\n")


def read(folder: Path) -> dict[str, Any]:
  """Returns {part: {"finished", "seconds"}}, in the order of their ends."""
  return files.kept(folder / FILE)


def forget(folder: Path, name: str) -> None:
  """Removes what is noted of a part."""
  if name in (noted := read(folder)):
    files.write(folder / FILE, json.dumps({key: one for key, one in noted.items() if key != name}, indent=1) + "\n")
