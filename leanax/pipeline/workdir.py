"""The directory of a run belongs to one experiment: config.json holds its values, and all stages in it are of these."""

import hashlib
import hmac
import json
import math
import os
import pathlib
import secrets
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections

from leanax.core import files
from leanax.core.errors import UserError, shown
from leanax.pipeline.config import loading, tree
from leanax.pipeline.config.experiment import Experiment

SAVED = "config.json"
SEAL = "config.seal"  # proof that this user's config made the directory: a digest of config.json with the user's key
EXPORT = ("export", "export_failure")  # keys of a stage that change nothing of what it trains
WORDS = ("about", "licence")  # keys of an experiment that its files hold, and that change nothing else
LATER = (*WORDS, "most_lost")  # those that may be changed for a run that stands
Values = Experiment | Mapping[str, Any] | ml_collections.ConfigDict
KEY = "seal.key"  # in the cache's directory


def resolved(config: Values) -> dict[str, Any]:
  """Returns all values as plain JSON data (tuples become lists).

  Raises:
    UserError: a value that JSON cannot hold, such as a function or a nan; its key is named.
  """
  return _plain(config, "")


def _plain(value: Any, key: str) -> Any:
  if tree.is_group(value):
    return {name: _plain(child, f"{key}.{name}".lstrip(".")) for name, child in tree.values(value).items()}
  if isinstance(value, list | tuple):
    return [_plain(element, f"{key}.{index}") for index, element in enumerate(value)]
  if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
    return value
  raise UserError(
    f"config key {key!r} must be a plain value (number, text, true, false, none, or a tuple of such), got "
    f"{shown(value)}"
  )


def fingerprint(config: Values) -> str:
  """Returns sixteen hexadecimal digits, equal for equal resolved configs."""
  return hashlib.sha256(json.dumps(resolved(config), sort_keys=True).encode()).hexdigest()[:16]


def claim(workdir: str | os.PathLike[str], config: Values) -> dict[str, Any]:
  """Makes `workdir` the directory of this config: writes config.json, or compares with the one that exists.

  A config that differs in stages or models takes the place of the other: the stages that it leaves as they were stand,
  the others and what needs them are removed, which is said on stderr (`reuse.keep`). Where stages differ in how they
  are exported alone, or the config in `LATER`, what is trained stays, and its files are made as it says now.

  A config.json that is lost or changed is made again where the seal proves that it held this config.

  Returns:
    The resolved config.

  Raises:
    UserError: the directory holds a run of another experiment (the first key that differs is named), or of one that is
      not known, or it cannot be made.
  """
  folder = pathlib.Path(workdir)
  given = resolved(config)
  file, text = folder / SAVED, files.kept_text(given)
  if _is_sealed(folder, text):
    if not file.is_file() or file.read_bytes() != text.encode():
      print(f"warning: {str(file)!r} was lost or changed; it is made again, as {SEAL} proves it was", file=sys.stderr)
      files.write(file, text)
    return given
  saved = files.kept(file, "put it back, or use another --workdir")
  if not saved and (found := _held(folder)):
    raise UserError(
      f"workdir {str(folder)!r} holds {found} and no {SAVED}, which says what that is of; put it back, or use another "
      "--workdir"
    )
  if not saved:
    try:
      folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(f"workdir {str(folder)!r} cannot be written: {error.strerror}") from error
  elif (saved := _completed(saved)) != given:
    _take_over(folder, saved, given)
  files.write(file, text)
  _seal(folder)
  return given


def _held(folder: pathlib.Path) -> str:
  """Returns the name of something that stages or seeds have left in a directory; "" where there is nothing."""
  names = ("models", "checkpoints", "files", "previous", "metrics.jsonl", "run.json")
  seeds = (path.name for path in sorted(folder.glob("seed*")) if (path / SAVED).exists())
  return next((name for name in (*names, *seeds) if (folder / name).exists()), "")


def _take_over(folder: pathlib.Path, saved: Any, given: dict[str, Any]) -> None:
  """Removes what is of the saved config and not of the given one; refuses one of another experiment."""
  from leanax.pipeline import reuse  # loads jax

  try:
    old, new = _typed(saved), _typed(given)
  except (UserError, TypeError, ValueError, AttributeError):  # not both are experiments
    old = new = None
  there, here = (one if new is None else reuse.identity(one) for one in (_trained(saved), _trained(given)))
  if difference := files.difference(there, here):
    raise UserError(f"workdir {str(folder)!r} holds a run of another config: {difference}; use another --workdir")
  if old is not None and new is not None:
    reuse.keep(folder, old, new, lambda group: _trained(resolved(group)))


def _trained(given: Any) -> Any:
  """Returns the values of a config without those that train nothing."""
  if not isinstance(given, dict) or not isinstance(given.get("stages"), dict):
    return given
  stages = {
    name: {key: value for key, value in stage.items() if key not in EXPORT} if isinstance(stage, dict) else stage
    for name, stage in given["stages"].items()
  }
  return {key: value for key, value in given.items() if key not in LATER} | {"stages": stages}


def saved(folder: str | os.PathLike[str]) -> Experiment:
  """Returns the experiment of a run's directory.

  Raises:
    UserError: the directory holds no run.
  """
  file = pathlib.Path(folder) / SAVED
  if not file.is_file():
    raise UserError(f"{str(folder)!r} holds no run: there is no {SAVED} in it")
  return _typed(files.kept(file, "was it changed by hand?"))


def _typed(given: Mapping[str, Any]) -> Experiment:
  """Returns the experiment of JSON data; keys that have been added since it was written have their defaults.

  Raises:
    UserError: it is the data of none.
  """
  try:
    return loading.typed(loading.complete(ml_collections.ConfigDict(_tuples(given))))
  except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError) as error:
    raise UserError(f"{SAVED} of the directory holds no config of a run; was it changed by hand?") from error


def _completed(given: Any) -> Any:
  """Returns JSON data of an experiment with the keys that have been added since; other data as it is."""
  try:
    return resolved(_typed(given))
  except (UserError, TypeError, ValueError, AttributeError):
    return given


def _tuples(value: Any) -> Any:
  """Returns JSON's lists as the tuples of a config."""
  if isinstance(value, list):
    return tuple(map(_tuples, value))
  return {key: _tuples(child) for key, child in value.items()} if isinstance(value, dict) else value


def is_own(workdir: str | os.PathLike[str]) -> bool:
  """Returns whether this user's config made the directory on this machine: code that it names may then be imported.

  A directory from elsewhere is untrusted data, and so is its config.json.
  """
  folder = pathlib.Path(workdir)
  try:
    return _is_sealed(folder, (folder / SAVED).read_bytes())
  except OSError:
    return False


def _is_sealed(folder: pathlib.Path, content: str | bytes) -> bool:
  """Returns whether this user's config made the directory, and config.json had this content."""
  try:
    return hmac.compare_digest((folder / SEAL).read_bytes(), f"{_digest(content, make=False)}\n".encode())
  except (OSError, RuntimeError):
    return False


def _seal(folder: pathlib.Path) -> None:
  """Marks the directory as the user's own; where no key can be stored, a flag has to name its code later."""
  try:
    digest = _digest((folder / SAVED).read_bytes(), make=True)
  except (OSError, RuntimeError, UserError):  # the second where there is no home
    (folder / SEAL).unlink(missing_ok=True)  # of another config, perhaps
    return
  files.write(folder / SEAL, digest + "\n")


def _digest(content: str | bytes, make: bool) -> str:
  """Returns the digest of what a config.json holds.

  Raises:
    OSError: there is no key, or it cannot be read.
    UserError: it cannot be made.
  """
  from leanax.engine.data.prepared import cache_root  # loads jax, which would delay an error on the command line

  key = cache_root(None) / KEY
  if make and not key.exists():
    key.parent.mkdir(parents=True, exist_ok=True)
    files.write(key, secrets.token_hex(32), secret=True)  # of several programs that make a key, the first one's stays
  content = content.encode() if isinstance(content, str) else content
  return hmac.new(key.read_bytes(), content, hashlib.sha256).hexdigest()
