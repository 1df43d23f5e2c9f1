"""Decoded copies of prepared sets: uint8 arrays in .npy files, checked against their digests at each start.

Decoding 60,000 small images takes half a minute; reading the arrays takes a fraction of a second.
"""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from leanax.core import files
from leanax.core.errors import UserError
from leanax.engine.data.pictures import decode_image
from leanax.engine.data.splits import Split, make_split
from leanax.engine.data.stock import first_line

FORMAT = 2  # 1: pictures lying on their side, 16 bits cut off at 255, transparent pixels in hidden colours
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels to pillow's name
BLOCK = 1024  # records read at a time


def read(
  builder: Any, split: str, *, first_id: int, size: tuple[int, int] | None, spare: Path, resize: str = "stretch"
) -> Split:
  """Returns one split of a prepared TFDS set, in its order, from the decoded copy or by decoding it now.

  Args:
    builder: a TFDS builder whose set is prepared as array_record.
    split: such as "train".
    first_id: the id of the first example; the others follow.
    size: (height, width) to which every image is resized; needed when they differ in size.
    spare: the folder of the decoded copy if the set's own folder cannot be written.
    resize: the way, of `pictures.RESIZES`.

  Raises:
    UserError: the set has no image or label, sizes differ and `size` is None, or a file is damaged.
  """
  image_key, label_key = _keys(builder)
  classes = tuple(builder.info.features[label_key].names)
  home = Path(os.fspath(builder.data_path))
  source = hashlib.sha256((home / "dataset_info.json").read_bytes()).hexdigest()
  stem = split if size is None else f"{split}_{size[0]}x{size[1]}" + (f"_{resize}" if resize != "stretch" else "")
  folders = [home / "decoded", spare / hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]]
  name = f"{builder.info.full_name}:{split}"

  for folder in folders:
    arrays = _load(folder, stem, source)
    if arrays is not None:
      break
  else:
    arrays = _decode(builder, split, image_key, label_key, size, resize)
    _save(next(folder for folder in folders if _writable(folder)), stem, source, arrays)
  return make_split(*arrays, first_id + np.arange(len(arrays[1])), classes, name)


def _keys(builder: Any) -> tuple[Any, Any]:
  """Returns the names of the image and of the label in a set's records."""
  features = builder.info.features
  keys = builder.info.supervised_keys or (None, None)
  kinds = {key: type(feature).__name__ for key, feature in features.items()}
  image = keys[0] or next((key for key, kind in kinds.items() if kind == "Image"), None)
  label = keys[1] or next((key for key, kind in kinds.items() if kind == "ClassLabel"), None)
  if kinds.get(image) != "Image" or kinds.get(label) != "ClassLabel":
    raise UserError(f"{builder.info.full_name} is not a set of classified images: its records hold {kinds}")
  if features[image].np_dtype != np.uint8:
    raise UserError(f"{builder.info.full_name} has {np.dtype(features[image].np_dtype)} images; expected uint8")
  return image, label


def _decode(
  builder: Any, split: str, image_key: str, label_key: str, size: tuple[int, int] | None, resize: str
) -> tuple[np.ndarray, np.ndarray]:
  """Reads every record of a split once."""
  from tensorflow_datasets import decode

  mode = MODES[builder.info.features[image_key].shape[-1] or 3]
  images: list[np.ndarray] = []
  labels: list[int] = []
  try:
    source = builder.as_data_source(split, decoders={image_key: decode.SkipDecoding()})
    blocks = (range(start, min(start + BLOCK, len(source))) for start in range(0, len(source), BLOCK))
    records = (record for block in blocks for record in source.__getitems__(list(block)))
    for record in records:
      place = _text(record.get("file")) or f"{builder.data_path}: {split} record {len(images)}"
      images.append(decode_image(record[image_key], mode, size, place, resize))
      labels.append(int(record[label_key]))
      if images[-1].shape != images[0].shape:
        one, two = (f"{image.shape[0]}x{image.shape[1]}" for image in (images[0], images[-1]))
        raise UserError(
          f"{builder.info.full_name}: images differ in size ({one}, and {two} in {place});"
          " give data.size=(height, width)"
        )
  except UserError:
    raise
  except Exception as error:  # the readers raise many kinds
    raise UserError(f"{builder.data_path}: the split {split!r} cannot be read: {first_line(error)}") from error
  if not images:
    raise UserError(f"{builder.data_path}: the split {split!r} is empty")
  return np.stack(images), np.asarray(labels, np.int32)


def _text(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value or "")


def _load(folder: Path, stem: str, source: str) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns the decoded copy, or None if there is none of this set and version."""
  manifest_path = folder / f"{stem}.json"
  if not manifest_path.exists():
    return None
  remedy = f"delete {folder} and the set is decoded again"
  try:
    manifest = json.loads(manifest_path.read_text())
    wanted = {key: manifest["sha256"][key] for key in ("images", "labels")}
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{manifest_path}: is damaged; {remedy}") from error
  if manifest.get("format") != FORMAT or manifest.get("source") != source:
    return None
  arrays = []
  for key in ("images", "labels"):
    path = folder / f"{stem}.{key}.npy"
    try:
      data = path.read_bytes()
    except OSError as error:
      raise UserError(f"{path}: cannot be read ({first_line(error)}); {remedy}") from error
    if hashlib.sha256(data).hexdigest() != wanted[key]:
      raise UserError(f"{path}: is damaged (its checksum is not the one in {manifest_path.name}); {remedy}")
    arrays.append(np.load(io.BytesIO(data), allow_pickle=False))
  return arrays[0], arrays[1]


def _save(folder: Path, stem: str, source: str, arrays: tuple[np.ndarray, np.ndarray]) -> None:
  """Writes the copy, the manifest last: without it a copy is ignored."""
  digests = {}
  for key, array in zip(("images", "labels"), arrays):
    buffer = io.BytesIO()
    np.save(buffer, array)
    digests[key] = hashlib.sha256(buffer.getbuffer()).hexdigest()
    files.write(folder / f"{stem}.{key}.npy", buffer.getbuffer())
  manifest = {"format": FORMAT, "source": source, "sha256": digests}
  files.write(folder / f"{stem}.json", json.dumps(manifest, indent=1).encode())


def _writable(folder: Path) -> bool:
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return False
  return os.access(folder, os.W_OK)
