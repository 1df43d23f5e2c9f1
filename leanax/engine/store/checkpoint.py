"""Checkpoints of a run: saved in the background, checked when they are read, never trusted blindly.

Orbax writes the arrays; it renames a step into place only when all of it is on disk, so a killed run leaves whole
steps. Orbax does not notice changed bytes, wrong shapes or wrong dtypes, so each step also holds a description
(json): format version, config, and per leaf the shape, the dtype and a checksum. A damaged step is left out with a
warning and the one before it is taken. This is the only file that knows Orbax's checkpoint manager.
"""

import json
import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import quant
from leanax.core import files
from leanax.core.errors import UserError
from leanax.core.trees import map_named, named_leaves
from leanax.engine.store import leaves
from leanax.engine.store.leaves import Leaf

FORMAT = 1
WRITER = "leanax"


class Restored(NamedTuple):
  """A step read back: the state, and the json values that were saved with it."""

  step: int
  state: Any
  extra: dict[str, Any]


class DamagedError(Exception):
  """A step that cannot be read, or that does not hold what was written."""


class Checkpoints:
  """The steps in one directory.

  Args:
    directory: created if it is missing (unless `read_only`).
    keep: how many of the newest steps stay; with 1 there is no step to fall back on.
    best: the name of a metric; the step where it was best stays as well.
    mode: "max" or "min", what is best.
    config: plain values that say whose run this is; steps of another config are refused. None accepts any.
    read_only: for looking at another program's run: nothing is created, cleaned up or saved.

  Raises:
    UserError: the directory holds other things, steps of another program, of another config or of a newer format.
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
    _check_directory(self.directory, read_only)
    self._manager = _manager(self.directory, _Preserve(self, keep), read_only)
    self._metrics: dict[int, dict[str, float]] = {}
    self._check_steps()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
    self.close()

  def steps(self) -> list[int]:
    """The finished steps, oldest first; they are there, which does not yet say that they are sound."""
    return sorted(self._manager.all_steps())

  def latest(self) -> int | None:
    """The newest finished step, or None."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """The step with the best metric (the newest among equals), or None if none was saved with it."""
    return max(_scored(self, self.steps()), default=(0.0, None))[1]

  def save(
    self, step: int, state: Any, *, metrics: Mapping[str, float] | None = None, extra: Mapping[str, Any] | None = None
  ) -> None:
    """Saves `state` in the background; when this returns, `state` may be donated or changed.

    After a restore the steps beyond the restored one are replaced: they are damaged, or of a future given up.

    Args:
      step: larger than every step saved or restored before.
      state: a tree of arrays (jax, numpy, typed keys) and numbers.
      metrics: numbers of this step, for `best`.
      extra: json values to read back with the state.
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
      self._manager.delete(old)
    about = {
      "writer": WRITER,
      "format": FORMAT,
      "step": int(step),
      "config": self._config,
      "metrics": {name: float(value) for name, value in (metrics or {}).items()},
      "extra": dict(extra or {}),
      "leaves": leaves.describe(state),
      "grids": quant.labels(state),
    }
    about = json.loads(json.dumps(about))
    about["crc32"] = _json_checksum(about)
    arrays = {name: leaves.stored(leaf) for name, leaf in named_leaves(state).items()}
    self._metrics[step] = about["metrics"]
    from orbax.checkpoint import args

    # Orbax refuses arrays without entries; their description says all there is to say
    tree = leaves.nested({name: array for name, array in arrays.items() if array.size})
    self._manager.save(step, args=args.Composite(state=args.StandardSave(tree), about=args.JsonSave(about)))
    self._at = int(step)

  def restore(self, target: Any, step: int | None = None) -> Restored:
    """Reads the newest sound step, or exactly `step`.

    Args:
      target: a tree as it was saved, of arrays or ShapeDtypeStructs; says the structure, and for jax arrays where they
        go (their sharding; without one, and for uncommitted arrays, the default device, uncommitted).
      step: this step and no other.

    Raises:
      UserError: there is no sound step, or the tree, a shape or a dtype is not the target's.
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
    raise UserError(f"there is no sound checkpoint in {self.directory} ({why})")

  def wait(self) -> None:
    """Blocks until the save in the background is on disk; raises what went wrong there."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Finishes the save in the background and ends its threads."""
    self._manager.close()

  def _score(self, step: int) -> float | None:
    """The metric that `best` names, larger is better; None where it is missing or not a number."""
    score = self._metrics.get(step, {}).get(self._best or "", math.nan)
    return None if math.isnan(score) else self._sign * score

  def _describe(self, step: int) -> dict[str, Any]:
    """The description of a step, checked as such (a later format must keep this checksum to be told from damage)."""
    from orbax.checkpoint import args

    try:
      about = self._manager.restore(step, args=args.Composite(about=args.JsonRestore()))["about"]
    except Exception as error:  # a damaged file may raise anything
      raise DamagedError("its description cannot be read") from error
    if not isinstance(about, dict) or about.get("crc32") != _json_checksum(about):
      raise DamagedError("its description does not match its checksum")
    return about

  def _check_steps(self) -> None:
    """Reads the descriptions of all steps; refuses a directory that is not this run's."""
    steps = self.steps()
    for step in steps:
      try:
        about = self._describe(step)
      except DamagedError:
        continue
      self._metrics[step] = about["metrics"]
      if about["format"] > FORMAT:
        raise UserError(
          f"checkpoint {self.directory / str(step)} has format {about['format']}, newer than this program's {FORMAT}; "
          "update the program"
        )
      diff = "" if None in (self._config, about["config"]) else files.difference(about["config"], self._config)
      if diff:
        raise UserError(f"{self.directory} holds checkpoints of another config: {diff}; choose another directory")
    if steps and not any((self.directory / str(step) / "about").exists() for step in steps):
      raise UserError(f"{self.directory} holds checkpoints that another program wrote; choose another directory")

  def _read(self, step: int, target: Any) -> Restored:
    """One step, compared with the target before the arrays are read and with its checksums after."""
    from orbax.checkpoint import args

    about = self._describe(step)
    saved = {name: Leaf.from_json(leaf) for name, leaf in about["leaves"].items()}
    named = named_leaves(target)
    leaves.compare(saved, named, f"checkpoint {self.directory / str(step)}")
    grids = about.get("grids", {})  # steps of before say nothing of them
    for name, codes in quant.labels(target).items():
      if codes != grids.get(name, codes):
        where = f"checkpoint {self.directory / str(step)}"
        raise UserError(f"{where}: {name!r} is {grids[name]!r} there and {codes!r} in this run")
    # To the host first: nothing unchecked gets onto a device, and the checksum needs the whole array anyway.
    arrays = {name: leaves.empty(leaf) for name, leaf in saved.items()}
    tree = leaves.nested({name: array for name, array in arrays.items() if array.size})
    try:
      arrays |= named_leaves(
        self._manager.restore(step, args=args.Composite(state=args.StandardRestore(tree)))["state"]
      )
    except Exception as error:  # a damaged file may raise anything
      raise DamagedError("its arrays cannot be read") from error
    if bad := leaves.damaged(saved, arrays):
      raise DamagedError(f"leaf {bad[0]!r} does not match its checksum")
    state = map_named(lambda name, leaf: _placed(saved[name], arrays[name], leaf), target)
    return Restored(step, state, about["extra"])


class _Preserve:
  """Which steps Orbax keeps: the newest `keep`, and the best one. (Orbax's own rule forgets metrics on a restart.)"""

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

  return ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(
      create=not read_only, cleanup_tmp_directories=not read_only, preservation_policy=policy
    ),
  )


def _check_directory(directory: Path, read_only: bool) -> None:
  """Refuses a place that cannot be ours before anything in it is touched."""
  if directory.exists() and not directory.is_dir():
    raise UserError(f"{directory} is a file; expected a directory for checkpoints")
  if not directory.exists():
    if read_only:
      raise UserError(f"there is no checkpoint directory {directory}")
    return
  names = sorted(path.name for path in directory.iterdir())
  strange = [name for name in names if not (name.partition(".")[0].isdigit() or name.startswith(("_", ".")))]
  if strange:
    raise UserError(f"{directory} is no directory of checkpoints: it holds {strange[0]!r}")


def _json_checksum(about: Mapping[str, Any]) -> int:
  body = {name: value for name, value in about.items() if name != "crc32"}
  return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def _sharding(target: Any) -> Any:
  """Where the target lives, if it says so; an uncommitted array may go anywhere and must stay so."""
  if isinstance(target, jax.Array):
    return target.sharding if target.committed else None
  return target.sharding if isinstance(target, jax.ShapeDtypeStruct) else None


def _placed(saved: Leaf, array: np.ndarray, target: Any) -> Any:
  """The restored leaf as the target has it: a jax array where that is one, else numpy or a Python number."""
  if not hasattr(target, "dtype"):
    return type(target)(array[()])
  leaf = leaves.recovered(array, saved)
  if not isinstance(target, jax.Array | jax.ShapeDtypeStruct):
    return leaf
  sharding = _sharding(target)
  return jnp.asarray(leaf) if sharding is None else jax.device_put(leaf, sharding)
