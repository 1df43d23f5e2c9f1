"""A user's own images as a TFDS set: ROOT/split/class/*.jpg or *.png, one folder a split, one folder a class.

TFDS's own folder builder hands images out through TensorFlow only; this one stores the files' bytes as array_record.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError
from engine.data.stock import first_line, is_prepared, tensorflow_datasets

SUFFIXES = (".jpg", ".jpeg", ".png")
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}

Files = dict[str, dict[str, list[Path]]]  # split -> class -> files


def scan(root: Path) -> Files:
  """The image files by split and class, all sorted by name.

  Raises:
    UserError: no such directory, no training or test split, no images, or a class that is not in the training split.
  """
  if not root.is_dir():
    raise UserError(f"{root}: no such directory; expected folders of images, such as {root}/train/CLASS/*.jpg")
  found: Files = {}
  for folder in _folders(root):
    split = SPLITS.get(folder.name.lower())
    if split is None:
      continue
    if split in found:
      raise UserError(f"{root}: has more than one folder for the split {split!r}")
    found[split] = {inner.name: _images(inner) for inner in _folders(folder)}
    empty = [name for name, files in found[split].items() if not files]
    if empty or not found[split]:
      raise UserError(f"{folder / (empty or ['CLASS'])[0]}: expected files that end in {', '.join(SUFFIXES)}")
  for split in ("train", "test"):
    if split not in found:
      raise UserError(f"{root / split}: no such directory; expected {root}/{split}/CLASS/*.jpg")
  for split, classes in found.items():
    strange = sorted(classes.keys() - found["train"].keys())
    if strange:
      raise UserError(f"{root}: class {strange[0]!r} is in the {split} split but not in the training split")
  return found


def _folders(path: Path) -> list[Path]:
  return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _images(folder: Path) -> list[Path]:
  return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))


def fingerprint(root: Path, files: Files, channels: int) -> str:
  """Changes when a file is added, removed, renamed or altered (by its size and time of change)."""
  digest = hashlib.sha256(f"{root.resolve()}\n{channels}\n".encode())
  for split, classes in files.items():
    for path in (path for name in sorted(classes) for path in classes[name]):
      stat = os.stat(path)
      digest.update(f"{split} {path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
  return digest.hexdigest()[:16]


def prepare(root: Path, channels: int, prepared: Path) -> Any:
  """Prepares the folder as array_record under `prepared`, unless this very content is, and returns its builder.

  Args:
    root: the folder of split folders.
    channels: 1 for grey images, 3 for colour.
    prepared: each content of each folder gets a directory of its own there.

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
          # The key fixes the shuffle, so it must not depend on where the folder lies.
          yield f"{label}/{path.name}", {"image": path.read_bytes(), "label": label, "file": str(path)}

  return ImageFolder
