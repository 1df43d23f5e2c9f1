"""Checkpoints of a run: saved in the background and checked when they are read.

Orbax writes the arrays; it renames a step into place only when it is complete on disk, so a killed run leaves complete
steps. Orbax does not detect changed bytes, wrong shapes or wrong dtypes, so each step also holds a description (JSON):
format version, config, and per leaf the shape, the dtype and a checksum. A damaged step is skipped with a warning, and
the one before it is restored. Only this file and `manager` use Orbax's checkpoint manager.
"""

import contextlib
import json
import math
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
from leanax.engine.store import leaves, manager
from leanax.engine.store.leaves import Leaf

FORMAT = 1
WRITER = "leanax"


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
    self._metrics: dict[int, dict[str, float]] = {}
    _check_directory(self.directory, read_only)
    manager.silence()
    with contextlib.ExitStack() as opened:
      path = opened.enter_context(manager.plain(self.directory))
      with self._reported():
        if not read_only:
          self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = manager.manager(path, manager.Preserve(keep, self._best_of), read_only)
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
    return self._best_of(self.steps())

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
    """Finishes the background save and ends its threads; raises as `wait` does."""
    with self._opened:
      try:
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
      steps = [int(path.name) for path in manager.listed(self.directory) if path.name.isdigit()]
      good = f"the last good one is of step {max(steps)}" if steps else "there is no earlier one"
      what = "checkpoints" if self._saving is None else f"the checkpoint of step {self._saving}"
      raise UserError(
        f"{what} cannot be written into {str(self.directory)!r}: {manager.reason(error)}; {good}"
      ) from error

  def _best_of(self, steps: Sequence[int]) -> int | None:
    scored = [(score, step) for step in steps if (score := self._score(step)) is not None]
    return max(scored, default=(0.0, None))[1]

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
