"""Changes the files of a finished run in many ways, reads it again each time, and counts what was found.

    python -m scripts.drills.flips --flips=2000 --others=400

One random bit is flipped in one file, or a file is cut, emptied, deleted, renamed, filled with zeros or swapped with
another one. Then all that reads the file runs again in this process: the same job for what a run leaves (its stages are
prepared once, for no file of a directory is read for that), `Checkpoints.restore` for checkpoints, and
`teacher_cache.read` for stored logits. What comes of a case is

- refused: one sentence that names the file, or what it is of;
- made again: the directory is bitwise what it was before the change, but for what a clock measures anew;
- named: it is not, and a warning says so, as of a checkpoint in whose place the one before was taken;
- not read: the file stays changed, and everything that is read is right; so of Orbax' own notes, and of spaces in JSON;
- the same: nothing was changed, as where two files that are swapped are equal;
- UNDETECTED: something is wrong without a word;
- UNCLEAR: a traceback, or a sentence that names neither the file nor its folder.

The status is 1 where one of the last two occurred.
"""

import collections
import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any
from unittest import mock

from absl import flags

from leanax.pipeline.config import flags as program
from scripts.drills.two_stages import EXPERIMENT

REFUSED, AGAIN, NAMED, NOT_READ, SAME = "refused", "made again", "named", "not read", "the same"
BAD = (UNDETECTED, UNCLEAR) = ("UNDETECTED", "UNCLEAR")
OUTCOMES = (REFUSED, AGAIN, NAMED, NOT_READ, SAME, *BAD)
KINDS = {"teacher_logits": "stored logits", "tensorboard": "event files"}
KINDS |= dict.fromkeys(("result.json", "report.html", "report.md"), "reports")
CLOCKS = (
  "files/latency.json",
  "run.json",
  "result.json",
  "report.html",
  "report.md",
)  # they hold what a clock measures

_FLIPS = flags.DEFINE_integer("flips", 2000, "Cases with one flipped bit.", lower_bound=0)
_OTHERS = flags.DEFINE_integer("others", 400, "Cases with another change.", lower_bound=0)
_SECONDS = flags.DEFINE_float("seconds", 3600.0, "No case begins after so many seconds.", lower_bound=0.0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the cases.")


class Run:
  """A finished run, which is read again without being prepared again.

  Args:
    folder: where it goes.
  """

  def __init__(self, folder: Path):
    from ml_collections import ConfigDict

    from leanax.engine.store import checkpoint, teacher_cache
    from leanax.graph.shapes import structs
    from leanax.pipeline import compress
    from leanax.pipeline.config import loading

    self.folder, self.config = folder, loading.resolve(ConfigDict(EXPERIMENT))
    self.saved: dict[Path, dict[int, Any]] = collections.defaultdict(dict)  # checkpoints as they were given
    self.targets: dict[Path, Any] = {}
    self.caches: dict[Path, Any] = {}  # the keys of stored logits
    save, build, opened = checkpoint.Checkpoints.save, teacher_cache.build, compress.opened

    def saving(self_: Any, step: int, state: Any, **more: Any) -> None:
      self.saved[self_.directory][step] = (_bytes(state), more["extra"])
      self.targets[self_.directory] = structs(state)
      save(self_, step, state, **more)

    def building(path: Any, key: Any, *arguments: Any, **more: Any) -> Any:
      self.caches[Path(path)] = key
      return build(path, key, *arguments, **more)

    with (
      mock.patch.object(checkpoint.Checkpoints, "save", saving),
      mock.patch.object(teacher_cache, "build", building),
    ):
      compress.compress(self.config, folder)
    context = opened(self.config, folder, export=True)
    self._prepared = mock.patch.object(compress, "opened", lambda *_, **__: context)
    self.compress()
    self.files = contents(folder)
    self.logits = {path: self._logits(path) for path in self.caches}

  def read(self, file: str) -> str:
    """Runs whatever reads a file, and returns "right", "other" where something takes its place, or "wrong"."""
    if kind_of(file) == "checkpoints":
      return self._checkpoint(self.folder.joinpath(*Path(file).parts[:2]))
    if kind_of(file) == "stored logits":
      path = next(path for path in self.caches if path in (self.folder / file).parents)
      return "right" if self._logits(path) == self.logits[path] else "wrong"
    self.compress()
    now = contents(self.folder)
    differ = {name for name in self.files if not _same(name, self.files[name], now.get(name))}
    return "right" if not differ else "other" if differ <= {*CLOCKS} else "wrong"

  def put_back(self) -> None:
    """Makes the directory what it was before a change."""
    there = contents(self.folder)
    for name in there.keys() - self.files.keys():
      (self.folder / name).unlink()
    for path in sorted(self.folder.rglob("*"), reverse=True):
      if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    for name, content in self.files.items():
      if there.get(name) != content:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(content)

  def compress(self) -> dict[str, Any]:
    """Runs the job again and returns its result."""
    from leanax.pipeline import compress

    with self._prepared:
      return compress.compress(self.config, self.folder)

  def _checkpoint(self, stage: Path) -> str:
    from leanax.engine.store.checkpoint import Checkpoints

    with Checkpoints(stage) as checkpoints:
      step, state, extra = checkpoints.restore(self.targets[stage])
    if (_bytes(state), extra) != self.saved[stage].get(step):
      return "wrong"
    return "right" if step == max(self.saved[stage]) else "other"

  def _logits(self, path: Path) -> dict[str, bytes]:
    from leanax.engine.store import teacher_cache

    return {name: array.tobytes() for name, array in teacher_cache.read(path, self.caches[path]).arrays.items()}


def _same(name: str, one: bytes, other: bytes | None) -> bool:
  """Returns whether two contents of a file say the same: JSON may have a number with another last digit."""
  if one == other or kind_of(name) == "event files":
    return True
  try:
    return name.endswith(".json") and other is not None and json.loads(one) == json.loads(other)
  except ValueError:
    return False


def _bytes(state: Any) -> dict[str, bytes]:
  import numpy as np

  from leanax.core.trees import named_leaves
  from leanax.engine.store import leaves

  return {name: np.asarray(leaves.stored(leaf)).tobytes() for name, leaf in named_leaves(state).items()}


def contents(folder: Path) -> dict[str, bytes]:
  """Returns the files of a directory by their names below it."""
  return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def kind_of(file: str) -> str:
  """Returns what a file of a run is."""
  top, suffix = Path(file).parts[0], Path(file).suffix
  if top == "files":
    return "figures" if suffix == ".json" else "exported files"
  return KINDS.get(top, top)


# The changes: each is given the run's directory, a file of it, another one of the same kind, and random numbers.


def flip(path: Path, _: Path, rng: Any) -> None:
  content = bytearray(path.read_bytes())
  content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
  path.write_bytes(content)


def cut(path: Path, _: Path, rng: Any) -> None:
  content = path.read_bytes()
  path.write_bytes(content[: rng.integers(len(content))])


def zeros(path: Path, _: Path, rng: Any) -> None:
  content = bytearray(path.read_bytes())
  start = int(rng.integers(len(content)))
  content[start : start + 512] = bytes(len(content[start : start + 512]))
  path.write_bytes(content)


def longer(path: Path, other: Path, rng: Any) -> None:
  path.write_bytes(path.read_bytes() + other.read_bytes()[: rng.integers(1, 100)])


def swap(path: Path, other: Path, _: Any) -> None:
  one, two = path.read_bytes(), other.read_bytes()
  path.write_bytes(two)
  other.write_bytes(one)


def replace(path: Path, other: Path, _: Any) -> None:
  path.write_bytes(other.read_bytes())


def delete(path: Path, *_: Any) -> None:
  path.unlink()


def rename(path: Path, *_: Any) -> None:
  """Gives a file another name; of a checkpoint, its step another number."""
  step = next((parent for parent in path.parents if parent.name.isdigit()), path)
  step.rename(step.with_name("97" if step is not path else f"{path.stem}2{path.suffix}"))


OTHERS = (cut, zeros, longer, swap, replace, delete, rename)


def case(run: Run, file: str, change: Any, other: str, rng: Any) -> tuple[str, str]:
  """Changes a file, reads it again, puts it back, and returns what came of it and what was said."""
  from leanax.core.errors import UserError

  path = run.folder / file
  change(path, run.folder / other, rng)
  changed = contents(run.folder)
  text, found = "", ""
  with _captured() as said:
    try:
      found = run.read(file)
    except UserError as error:
      text = str(error)
    except Exception:
      traceback.print_exc()
  words = f"{said[0]}{text}"
  after = contents(run.folder)
  run.put_back()
  if changed == run.files:
    return SAME, words
  if "Traceback" in words or "\n" in text or not (found or text):
    return UNCLEAR, words
  is_named = any(name in words for one in (file, other) for name in _names(one))
  if text:
    return REFUSED if is_named else UNCLEAR, words
  if found == "right":
    still = any(after.get(name) == content for name, content in changed.items() if content != run.files.get(name))
    return NOT_READ if still or (change is delete and file not in after) else AGAIN, words
  if found == "other" and is_named:
    return NAMED, words
  # A stage that is trained again has another end; what a clock measures is other numbers when it is measured again.
  copies = {*CLOCKS, *(name for name in run.files if kind_of(name) == "event files")}
  back = all(after.get(name) == run.files[name] or name in copies for name in run.files)
  lost = {file, other} & {*CLOCKS} & changed.keys()
  return AGAIN if found == "other" and back and not lost else UNDETECTED, words


def _names(file: str) -> list[str]:
  """Returns the names under which a sentence may speak of a file: its own, and those of the folders that it is in."""
  parts = Path(file).parts
  return [parts[-1], *("/".join(parts[:length]) for length in range(2, len(parts)))]


@contextlib.contextmanager
def _captured() -> Generator[list[str]]:
  """Gives a list that holds, after the block, what was written to stderr, by C++ too, and what was warned of."""
  held, before = [""], sys.stderr
  with tempfile.TemporaryFile("w+") as file:
    descriptor = os.dup(2)
    os.dup2(file.fileno(), 2)
    sys.stderr = file
    try:
      with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield held
    finally:
      sys.stderr = before
      os.dup2(descriptor, 2)
      os.close(descriptor)
      file.flush()
      file.seek(0)
      held[0] = file.read() + "".join(f"warning: {one.message}\n" for one in warned)


def drill(run: Run, flips: int, others: int, seed: int, seconds: float = 3600.0) -> collections.Counter:
  """Goes through the cases and returns their numbers by (change, kind, outcome); bad ones are printed.

  The two sorts of cases are mixed, so that both are there where the time is over before the last one.
  """
  import numpy as np

  rng = np.random.default_rng(seed)
  names = [name for name, content in run.files.items() if content]
  of = {kind: [name for name in names if kind_of(name) == kind] for kind in sorted({*map(kind_of, names)})}
  jobs = [name for name in names if kind_of(name) not in ("checkpoints", "stored logits")]
  kinds = [*of, *["checkpoints"] * 2]  # these are of many files
  counts: collections.Counter = collections.Counter()
  end = time.monotonic() + seconds
  for is_flip in rng.permutation(np.arange(flips + others) < flips):
    if time.monotonic() > end:
      break
    alike = of[kinds[rng.integers(len(kinds))]]
    file = str(rng.choice(alike))
    other = str(rng.choice([name for name in (alike if len(alike) > 1 else jobs) if name != file]))
    change = flip if is_flip else OTHERS[rng.integers(len(OTHERS))]
    outcome, words = case(run, file, change, other, rng)
    counts[change.__name__, kind_of(file), outcome] += 1
    if outcome in BAD:
      print(f"{outcome}: {change.__name__} {file} ({other}): {words[-2000:]}", flush=True)
  return counts


def table(counts: collections.Counter) -> str:
  """Returns the numbers of cases by kinds of files, and of changes, as Markdown."""
  lines = ["| change | files | " + " | ".join(OUTCOMES) + " |", "| --- | --- |" + " ---: |" * len(OUTCOMES)]
  pairs = [("flip", kind) for kind in dict.fromkeys(kind for change, kind, _ in sorted(counts) if change == "flip")]
  pairs += [(change.__name__, "") for change in OTHERS if any(change.__name__ == one for one, _, _ in counts)]
  for change, kind in pairs:
    sums = [
      sum(count for key, count in counts.items() if key[0] == change and key[1].startswith(kind) and key[2] == outcome)
      for outcome in OUTCOMES
    ]
    lines.append(f"| {change} | {kind or 'all'} | " + " | ".join(map(str, sums)) + " |")
  return "\n".join(lines)


def main() -> None:
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    counts = drill(Run(Path(folder) / "run"), _FLIPS.value, _OTHERS.value, _SEED.value, _SECONDS.value)
  print(table(counts))
  bad = sum(count for (_, _, outcome), count in counts.items() if outcome in BAD)
  print(f"\n{counts.total()} cases in {time.monotonic() - start:.0f} s, {bad} undetected or unclear")
  if bad:
    sys.exit(1)


if __name__ == "__main__":
  program.run(main, config=False)
