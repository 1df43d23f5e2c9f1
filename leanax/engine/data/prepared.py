"""Finds or prepares sets of TensorFlow Datasets, and reads their splits."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanax.core import ranges
from leanax.core.errors import UserError, nearest, unknown
from leanax.engine.data import decoded, folder, stock
from leanax.engine.data.pictures import RESIZES, check_size
from leanax.engine.data.splits import Dataset, hold_out

FEATURE_CLASS = ("pythonClassName", "python_class_name", "type")  # keys of features.json that name a class to import
HELD_OUT = 0.1  # of the training split, where a set has no validation split of its own


def load_tfds(
  argument: str,
  *,
  data_dir: str | Path | None = None,
  cache_dir: str | Path | None = None,
  validation: int | float | None = None,
  size: tuple[int, int] | None = None,
  resize: str = "stretch",
) -> Dataset:
  """Loads a set by its TFDS name ("mnist", "cifar10/3.0.2") or by its directory, prepared as array_record.

  "mnist" and "fashion_mnist" are prepared if needed: from the original files in `data_dir`/NAME or in `data_dir`
  itself, or, without `data_dir`, from the network.

  Args:
    argument: the name or the directory.
    data_dir: the directory of original files or prepared sets; by default LEANAX_DATA_DIR.
    cache_dir: the directory of sets that are prepared here; see `cache_root`.
    validation: number or fraction to hold out of the training split; 0.1 if the set has no validation split.
    size: (height, width) to resize images to; needed if their sizes differ.
    resize: the way, "stretch", "crop" or "pad" (`pictures`).

  Raises:
    UserError: the set is not found, or a file is missing or damaged.
  """
  tfds = stock.tensorflow_datasets()
  cache = cache_root(cache_dir)
  data = _data_root(data_dir)
  home = _directory(argument) or _find(argument, [cache / "tfds"] + ([data] if data else []))
  if home is not None:
    builder = _open(tfds, home)
  elif argument in stock.NAMES:
    builder = stock.prepare(
      stock.stock_class(argument), _originals(data, argument), cache / "tfds", cache / "downloads"
    )
  else:
    raise _not_found(argument, cache / "tfds", data)
  return _splits(builder, cache, validation, size, resize)


def load_folder(
  argument: str,
  *,
  cache_dir: str | Path | None = None,
  validation: int | float | None = None,
  test: float | None = None,
  split_seed: int = 0,
  size: tuple[int, int] | None = None,
  resize: str = "stretch",
  channels: int = 3,
  classes: Sequence[str] | None = None,
) -> Dataset:
  """Loads a user's own images: ARGUMENT/SPLIT/CLASS/*.jpg or ARGUMENT/CLASS/*.jpg (`folder`).

  Lines on stderr say which splits are taken from the training images, which classes a split lacks, and how many
  images of one split are in another one too, pixel by pixel.

  Args:
    argument: the directory; the validation folder may also be called val or valid.
    cache_dir: the directory of sets that are prepared here; see `cache_root`.
    validation: the share of each class's training images that becomes the validation split, 0.1 by default; 0 for an
      empty one. Not where there is a validation folder.
    test: likewise of the test split, 0.1 by default; above 0.
    split_seed: of the choice.
    size: (height, width) to resize images to; needed if their sizes differ.
    resize: the way, "stretch", "crop" or "pad" (`pictures`).
    channels: 1 for grey, 3 for colour; the files are converted.
    classes: the names of the classes in the order of a model's outputs, with or without ones that the folder lacks; by
      default those of the folder in the order of the alphabet.

  Raises:
    UserError: a folder or its images are not as expected, or a class of the folder is not among `classes`.
  """
  if channels not in (1, 3):
    raise UserError(f"data.channels is {channels}; expected 1 (grey) or 3 (colour)")
  ranges.check("data.split_seed", split_seed, ranges.whole(0))
  root, cache = Path(argument).expanduser(), cache_root(cache_dir)
  files = folder.scan(root)
  shares = folder.Shares(
    _share("test", test, ranges.INSIDE, root, files),
    _share("validation", validation, BELOW_ONE, root, files),
    split_seed,
  )
  if shares.test + shares.validation >= 1:
    raise UserError(
      f"data.test is {shares.test} and data.validation {shares.validation}; expected less than 1 together"
    )
  builder = folder.prepare(root, files, channels, shares, cache / "folders")
  found = _splits(builder, cache, 0 if "validation" not in builder.info.splits else None, size, resize)
  for line in _remarks(root, found, {split: share for split, share in shares._asdict().items() if split in TAKEN}):
    print(line, file=sys.stderr, flush=True)
  return found if classes is None else in_order(found, classes, root)


def in_order(data: Dataset, classes: Sequence[str], root: Path) -> Dataset:
  """Returns data whose labels count the classes in another order, perhaps of more of them (`load_folder`)."""
  if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
    raise UserError(f"data.classes is {classes!r}; expected the names of classes, such as ('cat', 'dog')")
  given = tuple(classes)
  if twice := [name for name in given if given.count(name) > 1]:
    raise UserError(f"data.classes has {twice[0]!r} twice; expected each class once")
  lacking = [name for name in data.train.classes if name not in given]
  if lacking:
    raise unknown(f"class in data.classes: {root} has a folder", lacking[0], given)
  place = np.array([given.index(name) for name in data.train.classes], np.int32)
  return Dataset(*(part._replace(labels=place[part.labels], classes=given) for part in data))


BELOW_ONE = ranges.Range("a share of the training images, from 0 to below 1", ranges.BELOW_ONE.has)
TAKEN = {"test": 0.1, "validation": HELD_OUT}  # the splits that a folder may lack, and the shares that then become them


def _share(split: str, given: float | None, expected: ranges.Range, root: Path, files: folder.Files) -> float:
  """Returns the share of the training images that becomes a split of a folder; 0 where it has the split."""
  if split in files:
    if given is not None:
      raise UserError(f"{root} has a {split} split of its own, so data.{split} must not be given")
    return 0.0
  ranges.check(f"data.{split}", TAKEN[split] if given is None else given, expected)
  return float(TAKEN[split] if given is None else given)


def _remarks(root: Path, found: Dataset, shares: Mapping[str, float]) -> Iterator[str]:
  """Yields a line for each thing about a folder's splits that a user should know."""
  counts = ", ".join(f"{split} {len(part.ids):,}" for split, part in zip(Dataset._fields, found))
  taken = {split: f"{100 * share:g} % for {split}" for split, share in shares.items() if share}
  if taken:
    yield f"data: {root} has no {' and no '.join(taken)} split; of each class {', '.join(taken.values())}: {counts}"
  for split, part in zip(Dataset._fields, found):
    lacking = sorted(set(range(len(part.classes))) - set(part.labels.tolist()))
    if lacking and len(part.labels):
      more = f", nor of {len(lacking) - 1} more" if lacking[1:] else ""
      yield f"warning: {root}: the {split} split has no image of class {part.classes[lacking[0]]!r}{more}"
  seen = {
    split: {hashlib.blake2b(image, digest_size=16).digest() for image in part.images}
    for split, part in zip(Dataset._fields, found)
  }
  for one, other in (("test", "train"), ("validation", "train"), ("test", "validation")):
    same = len(seen[one] & seen[other])
    if same:
      verb = "image is" if same == 1 else "images are"
      yield f"warning: {root}: {same:,} {verb} in both {one} and {other}, which makes an accuracy on {one} too high"


def cache_root(cache_dir: str | Path | None) -> Path:
  """Returns the directory of prepared sets: the argument, else LEANAX_CACHE_DIR, else ~/.cache/leanax."""
  return Path(cache_dir or os.environ.get("LEANAX_CACHE_DIR") or "~/.cache/leanax").expanduser()


def _data_root(data_dir: str | Path | None) -> Path | None:
  given = data_dir or os.environ.get("LEANAX_DATA_DIR")
  if not given:
    return None
  root = Path(given).expanduser()
  if not root.is_dir():
    source = "data_dir" if data_dir else "LEANAX_DATA_DIR"
    raise UserError(f"{root}: no such directory; {source} must name the one that holds the data")
  return root


def _directory(argument: str) -> Path | None:
  """Returns the argument as a directory, if it is written as a path."""
  if argument.startswith(("/", "./", "../", "~")) or (os.sep in argument and Path(argument).is_dir()):
    home = Path(argument).expanduser()
    if not (home / "dataset_info.json").exists():
      raise UserError(f"{home}: is no prepared data set; expected a directory with dataset_info.json")
    return home
  return None


def _find(argument: str, roots: list[Path]) -> Path | None:
  """Returns the newest prepared version of a name below the roots (ROOT/NAME[/CONFIG]/VERSION/dataset_info.json)."""
  for root in roots:
    infos = sorted((root / argument).glob("dataset_info.json")) or sorted(
      (root / argument).glob("*/dataset_info.json"), key=lambda info: _version(info.parent.name)
    )
    infos = [info for info in infos if ".incomplete" not in info.parent.name]
    if infos:
      return infos[-1].parent
  return None


def _version(text: str) -> tuple[int, ...]:
  return tuple(int(part) if part.isdigit() else -1 for part in text.split("."))


def _originals(data: Path | None, name: str) -> Path | None:
  """Returns the directory of a set's original files, or None for the network."""
  if data is None:
    return None
  here = data / stock.FILES["train"][0]
  return data if here.exists() and data.name == name else data / name


def _not_found(argument: str, prepared: Path, data: Path | None) -> UserError:
  roots = [prepared] + ([data] if data else [])
  names = {info.relative_to(root).parts[0] for root in roots for info in root.glob("*/*/dataset_info.json")}
  near = nearest(argument, names | set(stock.NAMES))
  hint = (
    f"did you mean {' or '.join(repr(f'tfds:{name}') for name in near)}?"
    if near
    else (
      "expected tfds:mnist, tfds:fashion_mnist or a set that TFDS has prepared there with file_format='array_record'"
    )
  )
  return UserError(f"data set 'tfds:{argument}' is not prepared below {' or '.join(map(str, roots))}; {hint}")


def _open(tfds: Any, home: Path) -> Any:
  _check_features(home)
  try:
    builder = tfds.builder_from_directory(home)
  except Exception as error:  # damaged JSON may raise anything
    raise UserError(f"{home}: cannot be opened as a prepared data set: {stock.first_line(error)}") from error
  form = getattr(builder.info.file_format, "value", None)
  if form not in ("array_record", "parquet"):
    raise UserError(
      f"{home}: is stored as {form}, which only TensorFlow reads; prepare it with file_format='array_record'"
    )
  return builder


def _check_features(home: Path) -> None:
  """Refuses a set whose features.json names classes outside of TFDS, which opening the set would import.

  Raises:
    UserError: names the class.
  """
  file = home / "features.json"
  pending: list[Any] = [file.read_text(encoding="utf-8", errors="replace")] if file.exists() else []
  while pending:
    value = pending.pop()
    if isinstance(value, str):  # a feature may be described by JSON in a string
      with contextlib.suppress(ValueError, RecursionError):
        pending += [found] if isinstance(found := json.loads(value), dict | list) else []
    if not isinstance(value, dict):
      pending += value if isinstance(value, list) else []
      continue
    pending += value.values()
    for key in FEATURE_CLASS:
      name = value.get(key)
      if isinstance(name, str) and "." in name and not name.startswith("tensorflow_datasets."):
        raise UserError(f"{file}: names the class {name!r}, which is not run; expected features of TensorFlow Datasets")


def _splits(
  builder: Any, cache: Path, validation: int | float | None, size: tuple[int, int] | None, resize: str
) -> Dataset:
  """Reads train, validation and test of a prepared set; ids are numbered over all splits."""
  check_size(size)
  if resize not in RESIZES:
    raise unknown("way in data.resize", resize, RESIZES)
  if size is None and resize != "stretch":
    raise UserError(f"data.resize is {resize!r}, and data.size is not given; expected (height, width)")
  name = builder.info.name
  present = list(builder.info.splits)
  test = next((split for split in ("test", "validation") if split in present), None)
  if "train" not in present or test is None:
    raise UserError(f"{builder.info.full_name} has the splits {', '.join(present)}; expected train and test")
  own = "validation" in present and test != "validation"
  if own and validation is not None:
    raise UserError(f"{builder.info.full_name} has a validation split of its own, so data.validation must not be given")

  def read(split: str, first_id: int) -> decoded.Split:
    return decoded.read(builder, split, first_id=first_id, size=size, spare=cache / "decoded", resize=resize)

  train = read("train", 0)
  end = len(train.ids)
  if own:
    held = read("validation", end)
    end += len(held.ids)
  else:
    train, held = hold_out(train, HELD_OUT if validation is None else validation, name)
  parts = Dataset(train, held, read(test, end))
  if len({part.images.shape[1:] for part in parts}) > 1:
    sizes = ", ".join("x".join(map(str, part.images.shape[1:3])) for part in parts)
    raise UserError(
      f"{builder.info.full_name}: the splits' images differ in size ({sizes}); give data.size=(height, width)"
    )
  return Dataset(*(part._replace(name=f"{name}/{split}") for split, part in zip(Dataset._fields, parts)))
