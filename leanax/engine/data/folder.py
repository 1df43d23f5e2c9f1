"""A user's own images as a TFDS set: one folder per class, in one folder per split or split here.

The layouts are ROOT/SPLIT/CLASS/... with or without the splits "validation" and "test", and ROOT/CLASS/..., which has
none; images may lie in folders of a class at any depth. A split that is missing is taken from the training images of
each class by a number in [0, 1) that each file has: SHA-256 of the seed and of the file's bytes. Files with the same
bytes are therefore in the same split, and a file that is added, removed or renamed moves no other. Only where a class
is so small that a split would have none of it does the split get the file with the next number.

Files that are not images (`engine.data.pictures`) are refused by name, except files beside the splits or classes, such
as a README, and names that begin with a dot. TFDS's own folder builder needs TensorFlow to read images; this one stores
the files' bytes as array_record.
"""

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from leanax.core.errors import UserError
from leanax.engine.data.pictures import SUFFIXES
from leanax.engine.data.stock import first_line, is_prepared, tensorflow_datasets

SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}

Classes = dict[str, list[Path]]  # class -> files
Files = dict[str, Classes]  # split -> class -> files


class Shares(NamedTuple):
  """The splits that are taken from the training images.

  Attributes:
    test: the share of each class's images, below 1; 0 for none.
    validation: likewise.
    seed: of the numbers of the files.
  """

  test: float = 0.0
  validation: float = 0.0
  seed: int = 0


def scan(root: Path) -> Files:
  """Returns the image files by split and class, sorted by name; of a folder without splits, all as "train".

  Raises:
    UserError: no such directory, no training split, less than two classes, a class without images or that is not in
      the training split, names that may be splits or classes, or a file that is not an image where images are expected.
  """
  if not root.is_dir():
    raise UserError(f"{root}: no such directory; expected folders of images, such as {root}/CLASS/*.jpg")
  entries = _entries(root)
  folders = [entry for entry in entries if entry.is_dir()]
  stray = next((entry for entry in entries if entry not in folders and entry.suffix.lower() in SUFFIXES), None)
  if stray is not None:
    raise UserError(f"{stray}: is in no class; expected {root}/CLASS/*.jpg, or {root}/train/CLASS/*.jpg")
  if not folders:
    raise UserError(f"{root}: has no folders; expected {root}/CLASS/*.jpg, or {root}/train/CLASS/*.jpg")
  splits = [folder for folder in folders if folder.name.lower() in SPLITS]
  if not splits:
    found = {"train": _of_classes(root, folders)}
    _refuse_splits_in_classes(root, folders)
  else:
    others = [folder for folder in folders if folder not in splits]
    if others:
      raise UserError(
        f"{root}: holds {splits[0].name!r}, the name of a split, beside {others[0].name!r}, which is none; expected "
        f"splits alone ({', '.join(SPLITS)}), so move {others[0].name!r} into one of them, or classes alone, so rename "
        f"the class {splits[0].name!r}"
      )
    if "train" not in {SPLITS[folder.name.lower()] for folder in splits}:
      raise UserError(f"{root / 'train'}: no such directory; expected {root}/train/CLASS/*.jpg")
    found = {}
    for folder in splits:
      split = SPLITS[folder.name.lower()]
      if split in found:
        raise UserError(f"{root}: has more than one folder for the split {split!r}")
      found[split] = _of_classes(folder, _classes(folder))
  for split, classes in found.items():
    extra = sorted(classes.keys() - found["train"].keys())
    if extra:
      raise UserError(f"{root}: class {extra[0]!r} is in the {split} split but not in the training split")
  if len(found["train"]) < 2:
    raise UserError(f"{root}: has one class, {next(iter(found['train']))!r}; expected two or more folders of images")
  return found


def _of_classes(folder: Path, classes: list[Path]) -> Classes:
  """Returns the images of a folder's classes."""
  for entry in classes:
    if entry.name.strip() != entry.name:
      raise UserError(f"{str(entry)!r}: is the name of a class; expected one without blanks around it; rename it")
  found = {entry.name: list(_images(entry, (entry.resolve(),))) for entry in classes}
  empty = [name for name, files in found.items() if not files]
  if empty:
    raise UserError(
      f"{folder / empty[0]}: the class is empty; expected images, files that end in {', '.join(SUFFIXES)}, or no such "
      "folder"
    )
  if not found:
    raise UserError(f"{folder / 'CLASS'}: expected files that end in {', '.join(SUFFIXES)}")
  return found


def _refuse_splits_in_classes(root: Path, classes: list[Path]) -> None:
  """Refuses classes that hold folders with names of splits: these are sets of their own, or splits of one class."""
  inner = [entry for name in classes for entry in _entries(name) if entry.is_dir() and entry.name.lower() in SPLITS]
  if inner:
    raise UserError(
      f"{inner[0]}: is the name of a split inside of {inner[0].parent.name!r}, which is none; expected "
      f"{root}/{inner[0].name}/CLASS/*.jpg, or the name of the folder that holds the splits"
    )


def _entries(folder: Path) -> list[Path]:
  """Returns the entries of a folder without hidden names.

  Raises:
    UserError: the folder cannot be listed, or a name in it is not text.
  """
  try:
    found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
  except OSError as error:
    raise UserError(f"{folder}: cannot be read: {error.strerror}") from error
  for entry in found:
    # Python decodes bytes that are not UTF-8 as surrogates; a name of several lines does not fit into a sentence.
    if any("\ud800" <= letter <= "\udfff" for letter in entry.name) or len(entry.name.splitlines()) > 1:
      raise UserError(f"{str(entry)!a}: has a name that is no UTF-8, or of several lines; rename it")
  return found


def _classes(split: Path) -> list[Path]:
  found = _entries(split)
  for entry in found:
    if not entry.is_dir():
      raise UserError(f"{entry}: is in no class; expected folders of images there, {split}/CLASS/*.jpg")
  return found


def _images(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
  """Yields the images in a folder and in its folders; `above` are the real paths of those that it lies in."""
  for file in _entries(folder):
    if file.is_dir():
      real = file.resolve()
      if real in above:
        raise UserError(f"{file}: is a link to a folder that it lies in; expected images")
      yield from _images(file, (*above, real))
    elif not file.is_file():
      raise UserError(f"{file}: is {'a link that leads nowhere' if file.is_symlink() else 'no file'}; expected images")
    elif file.suffix.lower() not in SUFFIXES:
      raise UserError(
        f"{file}: is of no kind that is read; expected names that end in {', '.join(SUFFIXES)} (one that "
        "begins with '.' is left out)"
      )
    else:
      yield file


def split_by_share(root: Path, files: Files, shares: Shares) -> Files:
  """Returns the files with the splits that `shares` takes from the training images of each class.

  Raises:
    UserError: a class has fewer different images than splits, or a file cannot be read.
  """
  wanted = {"test": shares.test, "validation": shares.validation}
  wanted = {split: share for split, share in wanted.items() if share}
  if not wanted:
    return files
  found: Files = {"train": {}, **{split: {} for split in wanted}}
  for name, paths in files["train"].items():
    numbers = {path: number_of(path, shares.seed) for path in paths}
    present = sorted(set(numbers.values()))
    if len(present) < len(found):
      raise UserError(
        f"{root}: class {name!r} has {_count(len(present), 'different image')}; expected {len(found)} or more, one for "
        f"each of {', '.join(found)}"
      )
    of, start, end = {}, 0, 0.0
    for index, (split, share) in enumerate(wanted.items()):
      end, left = end + share, len(wanted) - index
      stop = sum(number < end for number in present)
      stop = min(max(stop, start + 1), len(present) - left)  # one or more for each split that is still to come
      of |= dict.fromkeys(present[start:stop], split)
      start = stop
    for path, number in numbers.items():
      found[of.get(number, "train")].setdefault(name, []).append(path)
  return {**files, **found}


def number_of(path: Path, seed: int) -> float:
  """Returns the number in [0, 1) that decides a file's split."""
  try:
    content = path.read_bytes()
  except OSError as error:
    raise UserError(f"{path}: cannot be read: {error.strerror}") from error
  digest = hashlib.sha256(f"{seed}\n".encode() + hashlib.sha256(content).digest()).digest()
  return int.from_bytes(digest[:6], "big") / 2**48


def _count(number: int, what: str) -> str:
  return f"{number} {what}{'s' if number != 1 else ''}"


def fingerprint(root: Path, files: Files, channels: int, shares: Shares) -> str:
  """Returns a hash that changes when a file is added, removed, renamed or altered (by size and modification time)."""
  taken = f"{list(shares)}\n" if shares.test or shares.validation else ""
  digest = hashlib.sha256(f"{root.resolve()}\n{channels}\n{taken}".encode())
  for split, classes in files.items():
    for path in (path for name in sorted(classes) for path in classes[name]):
      stat = os.stat(path)
      digest.update(f"{split} {path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
  return digest.hexdigest()[:16]


def prepare(root: Path, files: Files, channels: int, shares: Shares, prepared: Path) -> Any:
  """Prepares the folder as array_record under `prepared`, unless its content is prepared, and returns its builder.

  Args:
    root: the folder of split or class folders.
    files: `scan` of it.
    channels: 1 for grey images, 3 for colour.
    shares: the splits that are taken from the training images.
    prepared: the parent directory; each content of each folder has its own directory there.

  Raises:
    UserError: see `split_by_share`; or the directory cannot be written.
  """
  splits: Files = {}
  builder = _builder(sorted(files["train"]), channels, lambda: splits, root)(
    data_dir=prepared / fingerprint(root, files, channels, shares), file_format="array_record"
  )
  if not is_prepared(builder):
    splits |= split_by_share(root, files, shares)
    tfds = tensorflow_datasets()
    count = sum(len(paths) for classes in splits.values() for paths in classes.values())
    print(f"{root}: reading {count:,} images, which later runs find prepared", file=sys.stderr, flush=True)
    try:
      with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints words on downloads, of which there are none
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except OSError as error:
      raise UserError(f"{root}: cannot be prepared in {prepared}: {first_line(error)}") from error
  return builder


def _builder(names: list[str], channels: int, files: Callable[[], Files], root: Path) -> Any:
  tfds = tensorflow_datasets()

  class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = "image_folder"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
      features = {
        "image": tfds.features.Image(shape=(None, None, channels)),
        "label": tfds.features.ClassLabel(names=names),
        "file": tfds.features.Text(),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        description="Images in folders: split/class/file.",
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      return {split: self._generate_examples(split) for split in files()}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
      for label, paths in files()[split].items():
        for path in paths:
          yield _key(root, label, path), {"image": path.read_bytes(), "label": label, "file": str(path)}

  return ImageFolder


def _key(root: Path, label: str, path: Path) -> str:
  """Returns the key of a file, which fixes the shuffle: its class and place there, whatever the path of the folder."""
  parts = path.relative_to(root).parts
  inside = parts[2 if parts[0].lower() in SPLITS else 1 :]
  return f"{label}/{'/'.join(inside)}"
