"""What every benchmark writes beside its numbers: the command, the machine, and how busy it was."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.environment import environment


def load() -> float | None:
  """The load average of the last minute, where the system has one."""
  return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def write(out: str, what: str, command: str, load_before: float | None, results: Mapping[str, Any]) -> None:
  """Writes a benchmark's JSON: `results`, what they are, the command that made them, and where it ran."""
  report = {
    "what": what,
    "command": command,
    **results,
    "environment": environment(),
    "load_average": {"start": load_before, "end": load()},
  }
  path = Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
