"""Hostile values for every key of a config: each is refused in a sentence before anything trains, or trains.

    python -m scripts.drills.configs                    # every key times every value: longer than ten minutes
    python -m scripts.drills.configs --cases=200        # a sample of them
    python -m scripts.drills.configs --trained=50       # and so many of the accepted ones are trained

Two experiments are changed, one key at a time, in the file and on the command line: one of defaults, and one in which
every key that others switch on has an effect. A case is *refused* (one sentence that names the key), *accepted* (it is
prepared as far as the first step), or a failure: a traceback, a sentence that names no key, a hang, or more memory than
`MOST_MEMORY`. Of those that are accepted a sample is trained: its loss has to be finite, and its weights others than
without the change, but for the keys of `SAME`.
"""

import collections
import contextlib
import dataclasses
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from leanax.core.errors import UserError
from leanax.pipeline.config import flags as program
from leanax.pipeline.config import loading, tree
from leanax.pipeline.config.experiment import Experiment
from scripts.drills.hostile import BASES, RICH, SAME, Case, cases, config_of

FLAGS = {  # a flag: its default, its least value, and its words
  "cases": (0, 0, "So many cases, drawn by the seed; 0 for all."),
  "trained": (40, 0, "So many of the accepted ones are trained."),
  "seconds": (3600, 1, "No further case is tried after so long."),
  "seed": (0, 0, "Of the draws."),
}
SECONDS = 60  # a case that takes longer hangs
MOST_MEMORY = 4 << 30  # bytes beyond those of the program before the first case
LENGTH = 600  # of a sentence


class Outcome(NamedTuple):
  """What became of a case.

  Attributes:
    kind: "refused", "accepted", or a failure: "traceback", "unnamed", "hang", "memory", "not finite", "no effect".
    words: the sentence, or what failed.
  """

  kind: str
  words: str = ""


FAILURES = ("traceback", "unnamed", "hang", "memory", "not finite", "no effect")


class Hang(BaseException):
  """A case took too long; no handler of exceptions is meant to catch it."""


def changed(case: Case) -> Experiment:
  """Returns the checked experiment of a case, as programs make it of a file and a command line."""
  values: Any = BASES[case.base]
  if case.text:
    return loading.resolve(config_of(values), [(case.key, case.value)])
  *groups, last = case.key.split(".")
  top = place = dict(values)
  for group in groups:
    inner = place.get(group) or {}
    place[group] = place = dict(inner) if isinstance(inner, dict) else {"name": inner}
  place[last] = case.value
  try:
    given = config_of(top)
  except (TypeError, ValueError) as error:  # no ConfigDict holds it: the file itself fails
    raise UserError(f"{case.key}: the file fails: {error}") from error
  return loading.resolve(given)


def prepared(config: Experiment, folder: Path) -> Any:
  """Returns the context of a run as programs open it, as far as its first step."""
  from leanax.pipeline.stage import opened

  return opened(config, folder, export=True)


def tried(case: Case) -> tuple[Outcome, Experiment | None]:
  """Prepares a case, and says what became of it."""
  config = None
  try:
    with within(SECONDS):
      config = changed(case)
      prepared(config, Path("unused"))
  except UserError as error:
    return _sentence(case, str(error)), None
  except Hang:
    return Outcome("hang", f"no answer within {SECONDS} s"), None
  except MemoryError as error:
    return Outcome("memory", str(error)), None
  except Exception as error:
    kind = "memory" if "RESOURCE_EXHAUSTED" in str(error) else "traceback"
    return Outcome(kind, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"), None
  return Outcome("accepted"), config


def _sentence(case: Case, said: str) -> Outcome:
  """Returns "refused" of one sentence that names the key, or the value that it is given."""
  parts = case.key.split(".")
  named = any(part in said for part in parts[-2:]) or str(case.value)[:20] in said or repr(case.value)[:20] in said
  if "\n" in said or len(said) > LENGTH + len(str(case.value)) or not named:
    return Outcome("unnamed", said[:300])
  return Outcome("refused", said)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
  """Raises `Hang` where the block takes longer."""

  def stop(*_: Any) -> None:
    raise Hang

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def bounded(more: int = MOST_MEMORY) -> Iterator[None]:
  """Lets the program map so many further bytes: what is beyond is refused by the system."""
  pages = int(Path("/proc/self/statm").read_text().split()[0])
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Trainer:
  """Trains accepted cases, and compares with the experiments as they are."""

  def __init__(self, folder: Path):
    self.folder, self.weights = folder, {}
    for base, values in BASES.items():
      self.weights[base] = self._run(loading.resolve(config_of(values)), folder / base)[1]

  def _run(self, config: Experiment, folder: Path) -> tuple[list[float], list[np.ndarray]]:
    """Returns the losses of the last stage, and its weights."""
    import jax

    from leanax.pipeline.compress import open_run
    from leanax.pipeline.stage import curves, run_stage

    teacher = self.folder / "rich" / "models" / "teacher.safetensors"
    done: dict[str, Any] = {}
    context = open_run(config, folder)
    if len(config.run) > 1 and teacher.is_file() and not folder.samefile(self.folder / "rich"):
      (folder / "models").mkdir()
      shutil.copy(teacher, folder / "models")
    for name in config.run:
      done[name] = run_stage(name, context, done)
    losses = [value for _, value in curves(config.run[-1], context).get("loss", [])]
    return losses, [np.asarray(leaf) for leaf in jax.tree.leaves(done[config.run[-1]].variables)]

  def trained(self, case: Case, config: Experiment) -> Outcome:
    """Trains a few steps of a case that was accepted."""
    config = dataclasses.replace(config, seeds=1, seeds_over="loop")
    stage = config.stages[config.run[-1]]
    if stage.epochs > 3:
      config = dataclasses.replace(
        config, stages={**config.stages, config.run[-1]: dataclasses.replace(stage, epochs=3)}
      )
    folder = Path(tempfile.mkdtemp(dir=self.folder))
    try:
      with within(4 * SECONDS):
        losses, weights = self._run(config, folder)
    except UserError as error:
      return Outcome("not finite" if "finite" in str(error) else "refused late", str(error)[:200])
    except Hang:
      return Outcome("hang", f"not trained within {4 * SECONDS} s")
    except Exception as error:
      return Outcome("traceback", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    finally:
      shutil.rmtree(folder, ignore_errors=True)
    if not np.isfinite(losses).all():
      return Outcome("not finite", str(losses))
    plain = self.weights[case.base]
    equal = len(plain) == len(weights) and all(map(np.array_equal, plain, weights))
    if equal and case.key.split(".")[-1] not in SAME and not _is_default(case, config):
      return Outcome("no effect", "the weights are those without the change")
    return Outcome("accepted", "trained")


def _is_default(case: Case, config: Experiment) -> bool:
  """Returns whether a case sets what the experiment has without it."""
  key = case.key
  plain = dict(tree.leaves(loading.resolve(config_of(BASES[case.base]))))
  return plain.get(key) == dict(tree.leaves(config)).get(key)


def _line(case: Case, outcome: Outcome) -> str:
  given = f"--config.{case.key}={case.value}" if case.text else f"{case.key}: {_shown(case.value)}"
  return f"{outcome.kind}: {case.base}: {given[:120]}: {outcome.words}"


def _shown(value: Any) -> str:
  return f"10^{len(str(value)) - 1}" if isinstance(value, int) and value > 10**20 else repr(value)


def drill(
  chosen: Sequence[Case], train: int, seed: int, seconds: float = 3600
) -> tuple[dict[str, int], list[tuple[Case, Outcome]]]:
  """Tries cases, trains some of the accepted ones, and returns counts by outcome and the failures.

  Args:
    chosen: the cases, in their order.
    train: how many of the accepted ones are trained.
    seed: of their draw.
    seconds: no further case is tried after so long, and none is trained after twice as long.
  """
  start = time.perf_counter()
  counts: collections.Counter[str] = collections.Counter()
  failures, accepted = [], []
  for index, case in enumerate(chosen):
    if time.perf_counter() - start > seconds:
      break
    outcome, config = tried(case)
    counts[outcome.kind] += 1
    if outcome.kind in FAILURES:
      failures.append((case, outcome))
      print(_line(case, outcome), file=sys.stderr, flush=True)
    if config is not None:
      accepted.append((case, config))
    if index % 500 == 499:
      print(f"{index + 1}/{len(chosen)}: {dict(counts)}", file=sys.stderr, flush=True)
  if not train:
    return dict(counts), failures
  drawn = random.Random(seed).sample(accepted, min(train, len(accepted)))
  with tempfile.TemporaryDirectory(prefix="leanax_drill_") as place:
    trainer = Trainer(Path(place))
    for case, config in drawn:
      if time.perf_counter() - start > 2 * seconds:
        break
      outcome = trainer.trained(case, config)
      counts["trained" if outcome.words == "trained" else f"trained: {outcome.kind}"] += 1
      if outcome.words != "trained":
        failures.append((case, outcome))
  return dict(counts), failures


def sample(count: int, seed: int) -> list[Case]:
  """Returns cases drawn by a seed; all of them with 0."""
  found = cases()
  return random.Random(seed).sample(found, min(count, len(found))) if count else found


def main() -> None:
  given, start = flags.FLAGS, time.perf_counter()
  chosen = sample(given.cases, given.seed)
  prepared(loading.resolve(config_of(RICH)), Path("unused"))  # what is loaded once is no case's memory
  with bounded():
    counts, failures = drill(chosen, given.trained, given.seed, given.seconds)
  for case, outcome in failures:
    print(_line(case, outcome))
  done = sum(count for kind, count in counts.items() if not kind.startswith("trained"))
  print(f"cases {done} of {len(cases())}, seconds {time.perf_counter() - start:.0f}")
  for kind in sorted(counts):
    print(f"  {kind}: {counts[kind]}")
  if failures:
    sys.exit(1)


if __name__ == "__main__":
  for name, (default, least, words) in FLAGS.items():  # not where a test imports this file beside other programs
    flags.DEFINE_integer(name, default, words, lower_bound=least)
  program.run(main, config=False)
