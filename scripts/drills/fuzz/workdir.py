"""Mutated files of a run's directory: its config and its metrics."""

import functools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from leanax.engine.store import metrics
from leanax.pipeline import workdir
from leanax.pipeline.config import loading
from scripts.drills.fuzz import mutations

LIMIT = 256
CONFIGS = ("digits", "digits_ptq", "kd_hinton", "kd_tutorial")


@functools.cache
def seeds() -> list[bytes]:
  """Returns true directories."""
  found = []
  for config in CONFIGS:
    with tempfile.TemporaryDirectory(dir=mutations.MEMORY) as place:
      workdir.claim(place, loading.typed(loading.complete(loading.load(f"configs/{config}.py"))))
      with metrics.Writer(place, tensorboard=False, part="stage") as writer:
        for step in range(3):
          writer.write(step, {"loss": 1 / (step + 1), "accuracy": float("nan")})
      files = mutations.of_folder(Path(place))
      found.append(mutations.folder({name: files[name] for name in ("config.json", metrics.NAME)}))
  return found


def mutant(draw: random.Random, files: list[bytes]) -> bytes:
  """Returns a directory that somebody damaged."""
  content = draw.choice(files)
  if draw.randrange(3):
    return mutations.in_folder(draw, content, files)
  held = mutations.files_of(content)
  lines = [json.loads(line) for line in held[metrics.NAME].splitlines()]
  mutations.changed(draw, lines)
  held[metrics.NAME] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
  return mutations.folder(held)


def case(content: bytes) -> str:
  """Reads a directory: its metrics, and then its config."""
  return mutations.read(content, _read, most=10_000)  # a sentence quotes the value of a key


def _read(place: Path) -> Any:
  return metrics.read(place), workdir.saved(place)
