"""Hostile values for every key of a config: each is refused in a sentence before anything trains, or trains.

    python -m scripts.drills.configs                    # every key times every value: about a quarter of an hour
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

CASES = flags.DEFINE_integer("cases", 0, "So many cases, drawn by the seed; 0 for all.", lower_bound=0)
TRAINED = flags.DEFINE_integer("trained", 40, "So many of the accepted ones are trained.", lower_bound=0)
LONGEST = flags.DEFINE_integer("seconds", 3600, "No further case is tried after so long.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0)

SECONDS = 60  # a case that takes longer hangs
MOST_MEMORY = 4 << 30  # bytes beyond those of the program before the first case
LENGTH = 600  # of a sentence

RATES = {"learning_rate": 0.01}
PLAIN: dict[str, Any] = {
  "data": {"name": "digits", "limit": 64},
  "models": {"student": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (8,)}}},
  "stages": {"student": {"epochs": 1, "batch_size": 16, "optimizer": RATES}},
  "run": ("student",),
  "evaluations": 1,
}
# Every switch is on: what is without effect in the first experiment has one here.
RICH: dict[str, Any] = {
  **PLAIN,
  "models": {
    "teacher": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (16,)}},
    "student": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (8,), "dropout": 0.1}},
  },
  "stages": {
    "teacher": {"model": "teacher", "epochs": 1, "batch_size": 16, "optimizer": RATES},
    "student": {
      "teacher": "teacher",
      "epochs": 2,
      "batch_size": 16,
      "examples": {"labelled": 48, "unlabelled": False},
      "optimizer": {
        "name": "sgd", "learning_rate": 0.05, "schedule": "step", "milestones": (0.5,), "ema": 0.5, "clip_norm": 1.0,
        "warmup_steps": 1, "weight_decay": 1e-3,
      },
      "augment": {
        "crop": 1, "resized_crop": (0.5, 1.0), "erase": 0.5, "mixup": 0.5, "cutmix": 0.5, "brightness": 0.2,
        "contrast": 0.2, "flip": True, "views": 2,
      },
      "objective": {"hard_labels": {"weight": 0.5}, "hinton": {"weight": 0.5, "temperature": 2.0}},
      "sparsity": {
        "name": "magnitude", "density": 0.5, "schedule": {"name": "cubic", "start": 0.0, "end": 0.5, "every": 1},
      },
      "quant": {"rules": (("*", "w8a8 learned"),), "calibration_batches": 2},
    },
  },
  "run": ("teacher", "student"),
}  # fmt: skip
BASES = {"plain": PLAIN, "rich": RICH}
# Keys of free groups of the second one's student that it does not set.
FREE = (
  "sparsity.rules", "sparsity.stacked", "sparsity.threshold", "sparsity.pattern", "sparsity.pack_axis",
  "sparsity.allocation", "objective.hinton.loss", "objective.hinton.mask", "objective.hinton.ignore_label",
  "objective.hinton.output", "objective.hinton.weight.name", "objective.hard_labels.class_weights", "objective.crd",
  "objective.other.loss", "reparam.name", "reparam.decay",
)  # fmt: skip

VALUES: tuple[Any, ...] = (
  -1, 0, 1, 2, 3, 1000, 2**31 - 1, 2**31, 2**63, 10**400, -(2**31), -1.0, -0.5, 0.0, 1e-30, 1e-7, 0.5, 1.0, 1.5, 1e6,
  1e15, 1e30, 1e308, float("nan"), float("inf"), "", "abc", "a/b", "nan", "../x", "x" * 3000, "\0", None, True, False,
  (), (0,), (1, 2), (-1, 1e308), (10**9,), (0.5,), ("abc",), (("a", "b"),), (("*", "w8a8"),), (None,), {"a": 1}, {},
  [1],
)  # fmt: skip
TEXTS = (
  "", "abc", "-1", "0", "0.5", "0.5,", "1e9", "1e-30", "1e308", "nan", "inf", "-inf", "none", "True", "2147483648",
  "9223372036854775808", "9" * 500, "()", "(", "0,", "(1,2)", "1,2,3", "(('a','b'),)", "(1000000000,)", "[1]", "{1: 2}",
  "((((((", "__import__('os')", "\N{SNOWMAN}", "*",
)  # fmt: skip

# Keys that change no weight of this run: words, what is measured, written and shown, and ways to compute the same.
SAME = (
  "name", "about", "licence", "keep", "checkpoint_every", "evaluations", "latency_runs", "layer_seconds", "most_lost",
  "gradient_norms", "steps_per_call", "metrics", "export", "export_failure", "cache_teacher", "cache_form",
  "cache_top_k", "seeds", "seeds_over", "shared", "parallel", "patience", "per_device_statistics", "limit", "rules",
  "ends", "new",
)  # fmt: skip


class Case(NamedTuple):
  """A change of one key of an experiment.

  Attributes:
    base: the experiment's name in `BASES`.
    key: dotted.
    value: what it is set to.
    text: whether it is given on the command line, as a text.
  """

  base: str
  key: str
  value: Any
  text: bool


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


def cases() -> list[Case]:
  """Returns every key of both experiments times every value, those of earlier stages left out."""
  found = []
  for base, values in BASES.items():
    whole = loading.complete(_config(values))
    keys = dict(tree.leaves(whole))
    keys = [key for key in keys if not key.startswith(("stages.teacher.", "models.teacher."))]
    keys += [f"stages.student.{key}" for key in FREE] if base == "rich" else []
    groups = {key.rpartition(".")[0] for key in keys if "." in key} | {"models", "stages"}
    found += [Case(base, key, value, False) for key in (*keys, *sorted(groups)) for value in VALUES]
    found += [Case(base, key, text, True) for key in keys for text in TEXTS]
  return found


def _config(values: Any) -> Any:
  import ml_collections

  return ml_collections.ConfigDict(values)


def changed(case: Case) -> Experiment:
  """Returns the checked experiment of a case, as programs make it of a file and a command line."""
  values: Any = BASES[case.base]
  if case.text:
    return loading.resolve(_config(values), [(case.key, case.value)])
  *groups, last = case.key.split(".")
  top = place = dict(values)
  for group in groups:
    inner = place.get(group) or {}
    place[group] = place = dict(inner) if isinstance(inner, dict) else {"name": inner}
  place[last] = case.value
  try:
    given = _config(top)
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
      self.weights[base] = self._run(loading.resolve(_config(values)), folder / base)[1]

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
  plain = dict(tree.leaves(loading.resolve(_config(BASES[case.base]))))
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
  start = time.perf_counter()
  chosen = sample(CASES.value, SEED.value)
  prepared(loading.resolve(_config(RICH)), Path("unused"))  # what is loaded once is no case's memory
  with bounded():
    counts, failures = drill(chosen, TRAINED.value, SEED.value, LONGEST.value)
  for case, outcome in failures:
    print(_line(case, outcome))
  tried_cases = sum(count for kind, count in counts.items() if not kind.startswith("trained"))
  print(f"cases {tried_cases} of {len(cases())}, seconds {time.perf_counter() - start:.0f}")
  for kind in sorted(counts):
    print(f"  {kind}: {counts[kind]}")
  if failures:
    sys.exit(1)


if __name__ == "__main__":
  program.run(main, config=False)
