"""Checkpoints of a run: saved in the background and checked when they are read.

Orbax writes the arrays; it renames a step into place only when it is complete on disk, so a killed run leaves complete
steps. Orbax does not detect changed bytes, wrong shapes or wrong dtypes, so each step also holds a description (JSON):
format version, config, and per leaf the shape, the dtype and a checksum. A damaged step is skipped with a warning, and
the one before it is restored. Only this file uses Orbax's checkpoint manager.
"""

import contextlib
import functools
import json
import logging
import math
import os
import re
import sys
import tempfile
import warnings
import zlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np

import quant
from leanax.core import files
from leanax.core.errors import UserError
from leanax.core.trees import map_named, named_leaves
from leanax.engine.store import leaves
from leanax.engine.store.leaves import Leaf

FORMAT = 1
WRITER = "leanax"
TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a step's directory until it is complete


class Restored(NamedTuple):
  """A restored step: the state, and the JSON values that were saved with it."""

  step: int
  state: Any
  extra: dict[str, Any]


class DamagedError(Exception):
  """A step cannot be read, or differs from what was written."""


class Checkpoints:
  """The checkpoints in one directory.

  Args:
    directory: created if it is missing (unless `read_only`).
    keep: the number of newest steps to keep; with 1 there is no step to fall back on.
    best: the name of a metric; its best step is kept as well.
    mode: "max" or "min", the direction of `best`.
    config: plain values; steps of another config are refused. None accepts any.
    read_only: for reading another process's run: nothing is created, cleaned up or saved.

  Raises:
    UserError: the directory holds other files, or steps of another program, another config or a newer format.
  """

  def __init__(
    self,
    directory: str | Path,
    *,
    keep: int = 3,
    best: str | None = None,
    mode: str = "max",
    config: Mapping[str, Any] | None = None,
    read_only: bool = False,
  ):
    if keep < 1 or mode not in ("max", "min"):
      raise UserError(f"checkpoints: expected keep >= 1 and mode 'max' or 'min', not keep={keep} and mode={mode!r}")
    self.directory = Path(directory).resolve()
    self._best, self._sign = best, 1.0 if mode == "max" else -1.0
    self._config = None if config is None else json.loads(json.dumps(config))
    self._read_only = read_only
    self._at: int | None = None
    self._saving: int | None = None  # the step whose save was begun last
    self._failed = False
    self._metrics: dict[int, dict[str, float]] = {}
    _check_directory(self.directory, read_only)
    _quiet()
    with contextlib.ExitStack() as opened:
      path = opened.enter_context(_plain(self.directory))
      with self._reported():
        if not read_only:
          self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = _manager(path, _Preserve(self, keep), read_only)
      self._check_steps()
      self._opened = opened.pop_all()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Returns the finished steps, oldest first; they are not checked for damage."""
    return sorted(self._manager.all_steps())

  def latest(self) -> int | None:
    """Returns the newest finished step, or None."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """Returns the step with the best metric (the newest among equals), or None if no step has the metric."""
    return max(_scored(self, self.steps()), default=(0.0, None))[1]

  def save(
    self, step: int, state: Any, *, metrics: Mapping[str, float] | None = None, extra: Mapping[str, Any] | None = None
  ) -> None:
    """Saves `state` in the background; after the call, `state` may be donated or changed.

    After a restore the steps beyond the restored one are deleted: they are damaged or abandoned.

    Args:
      step: larger than every step saved or restored so far.
      state: a tree of arrays (jax, numpy, typed keys) and numbers.
      metrics: numbers of this step, for `best`.
      extra: JSON values that `restore` returns with the state.
    """
    if self._read_only:
      raise ValueError("these checkpoints were opened to be read only")
    self.wait()
    abandoned = [s for s in self.steps() if self._at is None or s > self._at]
    if abandoned and self._at is None:
      raise ValueError(f"{self.directory} holds steps already; restore one before saving")
    if self._at is not None and step <= self._at:
      raise ValueError(f"step {step} does not come after step {self._at}")
    for old in abandoned:
      with self._reported():
        self._manager.delete(old)
    description = {
      "writer": WRITER,
      "format": FORMAT,
      "step": int(step),
      "config": self._config,
      "metrics": {name: float(value) for name, value in (metrics or {}).items()},
      "extra": dict(extra or {}),
      "leaves": leaves.describe(state),
      "grids": quant.labels(state),
    }
    description = json.loads(json.dumps(description))
    description["crc32"] = _json_checksum(description)
    arrays = {name: leaves.stored(leaf) for name, leaf in named_leaves(state).items()}
    self._metrics[step] = description["metrics"]
    from orbax.checkpoint import args

    # Orbax refuses empty arrays; their description suffices
    tree = leaves.nested({name: array for name, array in arrays.items() if array.size})
    self._saving = int(step)
    with self._reported():
      self._manager.save(step, args=args.Composite(state=args.StandardSave(tree), about=args.JsonSave(description)))
    self._at = int(step)

  def restore(self, target: Any, step: int | None = None) -> Restored:
    """Restores the newest undamaged step, or exactly `step`.

    Args:
      target: a tree of arrays or ShapeDtypeStructs with the saved structure; jax arrays are placed by its sharding
        (without one, and for uncommitted arrays, on the default device, uncommitted).
      step: the only step to try; None for the newest.

    Raises:
      UserError: there is no undamaged step, or the tree, a shape or a dtype differs from the target's.
    """
    self.wait()
    steps = self.steps()
    if not steps:
      raise UserError(f"there is no checkpoint in {self.directory}")
    if step is not None and step not in steps:
      raise UserError(
        f"there is no checkpoint of step {step} in {self.directory}; there are {', '.join(map(str, steps))}"
      )
    why = ""
    for candidate in reversed(steps) if step is None else [step]:
      try:
        restored = self._read(candidate, target)
      except DamagedError as error:
        why = f"step {candidate}: {error}"
        if candidate != steps[0] and step is None:
          where = self.directory / str(candidate)
          warnings.warn(f"checkpoint {where} is damaged ({error}); taking the one before", stacklevel=2)
      else:
        self._at = candidate
        return restored
    raise UserError(f"there is no sound checkpoint in {self.directory} ({why}); remove it to begin again")

  def check(self) -> None:
    """Raises what `wait` raises if a background save has ended by now; returns at once if it has not."""
    if self._saving is not None and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Blocks until the background save is on disk.

    Raises:
      UserError: it failed, or one before it: the directory, the reason and the last good step are named.
    """
    with self._reported():
      self._manager.wait_until_finished()
      if self._saving is not None:  # Orbax writes two small files of its own after the call of `sync`
        files.sync_tree(self.directory / str(self._saving))
        files.sync_folder(self.directory)
    self._saving = None

  def close(self) -> None:
    """Finishes the background save and ends its threads; raises as `wait` does, once for a save."""
    with self._opened:
      try:
        if not self._failed:
          self.wait()
      finally:
        with contextlib.suppress(Exception):  # the failed save's again
          self._manager.close()

  @contextlib.contextmanager
  def _reported(self) -> Generator[None]:
    """Turns what a save raises into a UserError; it may be anything of Orbax, TensorStore and the system."""
    try:
      yield
    except Exception as error:
      self._failed = True
      steps = [int(path.name) for path in _listed(self.directory) if path.name.isdigit()]
      good = f"the last good one is of step {max(steps)}" if steps else "there is no earlier one"
      what = "checkpoints" if self._saving is None else f"the checkpoint of step {self._saving}"
      raise UserError(f"{what} cannot be written into {str(self.directory)!r}: {_reason(error)}; {good}") from error

  def _score(self, step: int) -> float | None:
    """Returns the metric `best`, larger is better; None where it is missing or NaN."""
    score = self._metrics.get(step, {}).get(self._best or "", math.nan)
    return None if math.isnan(score) else self._sign * score

  def _describe(self, step: int) -> dict[str, Any]:
    """Returns a step's description after checking its checksum, which every later format must keep."""
    from orbax.checkpoint import args

    try:
      description = self._manager.restore(step, args=args.Composite(about=args.JsonRestore()))["about"]
    except Exception as error:  # a damaged file may raise anything
      raise DamagedError("its description cannot be read") from error
    if not isinstance(description, dict) or description.get("crc32") != _json_checksum(description):
      raise DamagedError("its description does not match its checksum")
    if description.get("step") != step:
      raise DamagedError(f"it is step {description.get('step')} under another number")
    return description

  def _check_steps(self) -> None:
    """Reads the descriptions of all steps; refuses a directory of another run."""
    steps = self.steps()
    for step in steps:
      try:
        description = self._describe(step)
      except DamagedError:
        continue
      self._metrics[step] = description["metrics"]
      if description["format"] > FORMAT:
        raise UserError(
          f"checkpoint {self.directory / str(step)} has format {description['format']}, newer than this program's "
          f"{FORMAT}; update the program"
        )
      written = description["config"]
      diff = "" if None in (self._config, written) else files.difference(written, self._config)
      if diff:
        raise UserError(f"{self.directory} holds checkpoints of another config: {diff}; choose another directory")
    if steps and not any((self.directory / str(step) / "about").exists() for step in steps):
      raise UserError(f"{self.directory} holds checkpoints that another program wrote; choose another directory")

  def _read(self, step: int, target: Any) -> Restored:
    """Reads one step; compares it with the target before its arrays are read, and with its checksums after."""
    from orbax.checkpoint import args

    description = self._describe(step)
    saved = {name: Leaf.from_json(leaf) for name, leaf in description["leaves"].items()}
    named = named_leaves(target)
    leaves.compare(saved, named, f"checkpoint {self.directory / str(step)}")
    grids = description.get("grids", {})  # older steps do not have them
    for name, codes in quant.labels(target).items():
      if codes != grids.get(name, codes):
        where = f"checkpoint {self.directory / str(step)}"
        raise UserError(f"{where}: {name!r} is {grids[name]!r} there and {codes!r} in this run")
    # To the host first: the checksum needs the whole array, and only checked arrays go to devices.
    arrays = {name: leaves.empty(leaf) for name, leaf in saved.items()}
    tree = leaves.nested({name: array for name, array in arrays.items() if array.size})
    try:
      restored = self._manager.restore(step, args=args.Composite(state=args.StandardRestore(tree)))["state"]
      arrays |= named_leaves(restored)
    except Exception as error:  # a damaged file may raise anything
      raise DamagedError("its arrays cannot be read") from error
    if bad := leaves.damaged(saved, arrays):
      raise DamagedError(f"leaf {bad[0]!r} does not match its checksum")
    state = map_named(lambda name, leaf: _placed(saved[name], arrays[name], leaf), target)
    return Restored(step, state, description["extra"])


class _Preserve:
  """Orbax's preservation policy: the newest `keep` steps and the best one. (Orbax's own loses metrics on a restart.)"""

  def __init__(self, owner: Checkpoints, keep: int):
    self._owner, self._keep = owner, keep

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    del context
    steps = sorted(info.step for info in checkpoints)
    kept = {*steps[-self._keep :], max(_scored(self._owner, steps), default=(0.0, None))[1]}
    return [info.step in kept for info in checkpoints]


def _scored(checkpoints: Checkpoints, steps: Sequence[int]) -> list[tuple[float, int]]:
  return [(score, step) for step in steps if (score := checkpoints._score(step)) is not None]


def _manager(directory: Path, policy: Any, read_only: bool) -> Any:
  import orbax.checkpoint as ocp

  def sync() -> None:  # Orbax calls it when a step is complete and before its directory has its name
    for path in _listed(directory):
      if TEMPORARY in path.name:
        files.sync_tree(path)

  return ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(
      create=False,
      cleanup_tmp_directories=not read_only,
      preservation_policy=policy,
      # Made in the background, a directory that cannot be made is waited for without an end.
      async_options=ocp.options.AsyncOptions(post_finalization_callback=sync, create_directories_asynchronously=False),
    ),
  )


@contextlib.contextmanager
def _plain(directory: Path) -> Generator[Path]:
  """Gives a path of the directory that Orbax and TensorStore read as it is: they take some characters for patterns."""
  if not re.search(r"[\\\[\]*?:]", str(directory)):
    yield directory
    return
  with tempfile.TemporaryDirectory(prefix="leanax") as folder:
    link = Path(folder) / "checkpoints"
    link.symlink_to(directory)
    yield link


@functools.cache
def _quiet() -> None:
  """Keeps off the screen what Orbax and TensorStore print of failed saves and damaged steps, with tracebacks.

  The error itself is raised, and said in a sentence. What else waits for it is told later, by threads of theirs that
  may outlive the checkpoints, so this stays as it is until the program ends.
  """
  theirs = re.compile(r"OCDBT|local file|tensorstore|orbax|Event loop is closed")

  def shown(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return "orbax" not in Path(record.pathname).parts and not (error and theirs.search(str(error)))

  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(shown)
  before = sys.unraisablehook

  def unraisable(given: Any) -> None:
    if not theirs.search(str(given.exc_value)):
      before(given)

  sys.unraisablehook = unraisable


def _listed(directory: Path) -> list[Path]:
  try:
    return list(directory.iterdir())
  except OSError:
    return []


def _reason(error: BaseException) -> str:
  """Returns why a file could not be written: the system's words where an error or its text has some."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  if found := re.search(r"os_error_code='?(\d+)", str(error)):  # of TensorStore
    return os.strerror(int(found[1]))
  return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _check_directory(directory: Path, read_only: bool) -> None:
  """Refuses a directory of other files before anything in it changes."""
  if directory.exists() and not directory.is_dir():
    raise UserError(f"{directory} is a file; expected a directory for checkpoints")
  if not directory.exists():
    if read_only:
      raise UserError(f"there is no checkpoint directory {directory}")
    return
  names = sorted(path.name for path in directory.iterdir())
  foreign = [name for name in names if not (name.partition(".")[0].isdigit() or name.startswith(("_", ".")))]
  if foreign:
    raise UserError(f"{directory} is no directory of checkpoints: it holds {foreign[0]!r}")


def _json_checksum(description: Mapping[str, Any]) -> int:
  body = {name: value for name, value in description.items() if name != "crc32"}
  return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def _sharding(target: Any) -> Any:
  """Returns the target's sharding; None for an uncommitted array, which must stay uncommitted."""
  if isinstance(target, jax.Array):
    return target.sharding if target.committed else None
  return target.sharding if isinstance(target, jax.ShapeDtypeStruct) else None


def _placed(saved: Leaf, array: np.ndarray, target: Any) -> Any:
  """Returns the restored leaf with the target's type: a jax array, a numpy array or a Python number."""
  if not hasattr(target, "dtype"):
    return type(target)(array[()])
  leaf = leaves.recovered(array, saved)
  if not isinstance(target, jax.Array | jax.ShapeDtypeStruct):
    return leaf
  sharding = _sharding(target)
  return jax.device_put(leaf, sharding)
