"""A user's own images as a TFDS set: ROOT/split/class/*.jpg, one folder per split, one folder per class.

Files that are not images (`engine.data.pictures`) are refused by name, except files beside the splits, such as a
README, and names that begin with a dot. TFDS's own folder builder needs TensorFlow to read images; this one stores the
files' bytes as array_record.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leanax.core.errors import UserError
from leanax.engine.data.pictures import SUFFIXES
from leanax.engine.data.stock import first_line, is_prepared, tensorflow_datasets

SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}

Files = dict[str, dict[str, list[Path]]]  # split -> class -> files


def scan(root: Path) -> Files:
  """Returns the image files by split and class, sorted by name.

  Raises:
    UserError: no such directory, no training or test split, no images, a class that is not in the training split, or
      a file that is not an image where images are expected.
  """
  if not root.is_dir():
    raise UserError(f"{root}: no such directory; expected folders of images, such as {root}/train/CLASS/*.jpg")
  found: Files = {}
  strangers = []
  for folder in _entries(root):
    split = SPLITS.get(folder.name.lower())
    if split is None or not folder.is_dir():
      strangers += [folder] if folder.is_dir() or folder.suffix.lower() in SUFFIXES else []
      continue
    if split in found:
      raise UserError(f"{root}: has more than one folder for the split {split!r}")
    found[split] = {inner.name: _images(inner) for inner in _classes(folder)}
    empty = [name for name, files in found[split].items() if not files]
    if empty or not found[split]:
      raise UserError(f"{folder / (empty or ['CLASS'])[0]}: expected files that end in {', '.join(SUFFIXES)}")
  for split in ("train", "test"):
    if split not in found:
      raise UserError(f"{root / split}: no such directory; expected {root}/{split}/CLASS/*.jpg")
  if strangers:
    raise UserError(
      f"{strangers[0]}: is in no split; expected folders called {', '.join(SPLITS)} alone (a name that begins "
      "with '.' is left out)"
    )
  for split, classes in found.items():
    extra = sorted(classes.keys() - found["train"].keys())
    if extra:
      raise UserError(f"{root}: class {extra[0]!r} is in the {split} split but not in the training split")
  return found


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
    if entry.name.strip() != entry.name:
      raise UserError(f"{str(entry)!r}: is the name of a class; expected one without blanks around it; rename it")
  return found


def _images(folder: Path) -> list[Path]:
  files = _entries(folder)
  for file in files:
    if not file.is_file():
      what = "a folder in a class" if file.is_dir() else "a link that leads nowhere" if file.is_symlink() else "no file"
      raise UserError(f"{file}: is {what}; expected images alone")
    if file.suffix.lower() not in SUFFIXES:
      raise UserError(
        f"{file}: is of no kind that is read; expected names that end in {', '.join(SUFFIXES)} (one that "
        "begins with '.' is left out)"
      )
  return files


def fingerprint(root: Path, files: Files, channels: int) -> str:
  """Returns a hash that changes when a file is added, removed, renamed or altered (by size and modification time)."""
  digest = hashlib.sha256(f"{root.resolve()}\n{channels}\n".encode())
  for split, classes in files.items():
    for path in (path for name in sorted(classes) for path in classes[name]):
      stat = os.stat(path)
      digest.update(f"{split} {path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
  return digest.hexdigest()[:16]


def prepare(root: Path, channels: int, prepared: Path) -> Any:
  """Prepares the folder as array_record under `prepared`, unless its content is prepared, and returns its builder.

  Args:
    root: the folder of split folders.
    channels: 1 for grey images, 3 for colour.
    prepared: the parent directory; each content of each folder has its own directory there.

  Raises:
    UserError: see `scan`.
  """
  files = scan(root)
  builder = _builder(root, files, channels)(
    data_dir=prepared / fingerprint(root, files, channels), file_format="array_record"
  )
  if not is_prepared(builder):
    tfds = tensorflow_datasets()
    try:
      with contextlib.redirect_stdout(sys.stderr):  # TFDS prints to stdout, which is for results
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except OSError as error:
      raise UserError(f"{root}: cannot be prepared in {prepared}: {first_line(error)}") from error
  return builder


def _builder(root: Path, files: Files, channels: int) -> Any:
  tfds = tensorflow_datasets()
  classes = sorted(files["train"])

  class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = "image_folder"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
      features = {
        "image": tfds.features.Image(shape=(None, None, channels)),
        "label": tfds.features.ClassLabel(names=classes),
        "file": tfds.features.Text(),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        description="Images in folders: split/class/file.",
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      return {split: self._generate_examples(split) for split in files}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
      for label, paths in files[split].items():
        for path in paths:
          # The key fixes the shuffle, so it must not depend on the folder's path.
          yield f"{label}/{path.name}", {"image": path.read_bytes(), "label": label, "file": str(path)}

  return ImageFolder
