"""Images with a mask of each, for segmentation: ROOT/split/images/NAME.jpg and ROOT/split/masks/NAME.png.

A mask holds class numbers, as a grey picture of 8 bits or one with a palette, whose indices are the classes. It is
resized to its nearest pixel, and images as those of folders.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanax.core.errors import UserError, unknown
from leanax.engine.data.folder import SPLITS
from leanax.engine.data.pictures import RESIZES, SUFFIXES, check_size, decode_image, opened
from leanax.engine.data.splits import Dataset, Split, hold_out, make_split

HELD_OUT = 0.1  # of the training split, where there is no folder of validation
LARGEST = 255  # of a mask, where it says that there is no class unless a set has 256


def load_masks(
  argument: str,
  *,
  validation: int | float | None = None,
  size: Sequence[int] | None = None,
  resize: str = "stretch",
  channels: int = 3,
  classes: Sequence[str] = (),
) -> Dataset:
  """Loads images and masks: ROOT/{train,validation,test}/{images,masks}/NAME, a mask of the same NAME for each image.

  Args:
    argument: ROOT; the validation folder may also be called val or valid, and may be missing.
    validation: number or fraction to hold out of the training split; 0.1 if there is no validation folder.
    size: (height, width) to resize to (images bilinear, masks to the nearest pixel); needed if sizes differ.
    resize: the way, of `pictures.RESIZES`; the border of "pad" has no class, which is 255 in a mask.
    channels: 1 for grey images, 3 for colour; the files are converted.
    classes: their names, in the order of their numbers; by default they are counted in the masks, 255 left out.

  Raises:
    UserError: a folder or its files are not as expected; names the file.
  """
  root = Path(argument).expanduser()
  if channels not in (1, 3):
    raise UserError(f"data.channels is {channels}; expected 1 (grey) or 3 (colour)")
  check_size(size)
  if resize not in RESIZES:
    raise unknown("way of 'data.resize'", resize, RESIZES)
  found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
  for folder in _folders(root):
    split = SPLITS[folder.name.lower()]
    if split in found:
      raise UserError(f"{root}: has more than one folder for the split {split!r}")
    found[split] = _read(folder, "L" if channels == 1 else "RGB", None if size is None else (size[0], size[1]), resize)
  for split in ("train", "test"):
    if split not in found:
      raise UserError(f"{root / split}: no such directory; expected {root}/{split}/images and masks")
  if "validation" in found and validation is not None:
    raise UserError(f"{root} has a validation folder, so data.validation must not be given")
  return _dataset(root, found, classes, validation)


def _dataset(root: Path, found: Any, classes: Sequence[str], validation: int | float | None) -> Dataset:
  shapes = {images.shape[1:] for images, _ in found.values()}
  if len(shapes) > 1:
    sizes = ", ".join("x".join(map(str, shape[:2])) for shape in sorted(shapes))
    raise UserError(f"{root}: the splits' images differ in size ({sizes}); give data.size=(height, width)")
  numbers = np.unique(np.concatenate([np.unique(masks) for _, masks in found.values()]))
  names = tuple(classes) or tuple(map(str, range(int(max(numbers[numbers < LARGEST], default=0)) + 1)))
  splits: dict[str, Split] = {}
  first = 0
  for split in Dataset._fields:
    if split in found:
      images, masks = found[split]
      ids = np.arange(first, first + len(images))
      splits[split] = make_split(images, masks, ids, names, f"{root.name}/{split}")
      first += len(images)
  if "validation" not in splits:
    share = HELD_OUT if validation is None else validation
    splits["train"], splits["validation"] = hold_out(splits["train"], share, root.name)
  return Dataset(*(splits[split] for split in Dataset._fields))


def _folders(root: Path) -> list[Path]:
  if not root.is_dir():
    raise UserError(f"{root}: no such directory; expected {root}/train/images/NAME.jpg and {root}/train/masks/NAME.png")
  found = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
  strangers = [entry for entry in found if entry.name.lower() not in SPLITS]
  if strangers:
    raise UserError(f"{strangers[0]}: is in no split; expected folders called {', '.join(SPLITS)} alone")
  return found


def _files(folder: Path) -> dict[str, Path]:
  """Returns the pictures of a folder by their names without suffixes."""
  if not folder.is_dir():
    raise UserError(f"{folder}: no such directory; expected pictures there")
  found: dict[str, Path] = {}
  for file in sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".")):
    if not file.is_file() or file.suffix.lower() not in SUFFIXES:
      raise UserError(f"{file}: is of no kind that is read; expected names that end in {', '.join(SUFFIXES)}")
    if file.stem in found:
      raise UserError(f"{file}: has the name of {found[file.stem].name}; expected one file of each name")
    found[file.stem] = file
  if not found:
    raise UserError(f"{folder}: is empty; expected files that end in {', '.join(SUFFIXES)}")
  return found


def _read(folder: Path, mode: str, size: tuple[int, int] | None, resize: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the images (N, H, W, C) and masks (N, H, W) of a split, by name."""
  images, masks = _files(folder / "images"), _files(folder / "masks")
  for one, other, what in ((images, masks, "mask"), (masks, images, "image")):
    if alone := sorted(one.keys() - other.keys()):
      raise UserError(f"{one[alone[0]]}: has no {what} of its name; expected one")
  arrays: list[tuple[np.ndarray, np.ndarray]] = []
  for name, file in images.items():
    whole = decode_image(file.read_bytes(), mode, None, str(file))
    mask = read_mask(masks[name], None)
    if mask.shape != whole.shape[:2]:
      raise UserError(
        f"{masks[name]}: is of {mask.shape[0]}x{mask.shape[1]} pixels, and its image of {whole.shape[0]}x"
        f"{whole.shape[1]}; expected the same"
      )
    if size is not None and mask.shape != size:
      whole, mask = decode_image(file.read_bytes(), mode, size, str(file), resize), read_mask(masks[name], size, resize)
    if arrays and whole.shape != arrays[0][0].shape:
      raise UserError(f"{file}: images of {folder} differ in size; give data.size=(height, width)")
    arrays.append((whole, mask))
  return np.stack([image for image, _ in arrays]), np.stack([mask for _, mask in arrays])


def read_mask(file: Path, size: tuple[int, int] | None, resize: str = "stretch") -> np.ndarray:
  """Returns a mask, (height, width) uint8: the grey level or the index in the palette of each pixel."""
  from PIL import Image

  with opened(file.read_bytes(), str(file)) as image:
    if image.mode not in ("L", "P", "1"):
      raise UserError(
        f"{file}: has pixels of mode {image.mode!r}; expected class numbers: a grey picture of 8 bits, or one with a "
        "palette"
      )
    if image.format in ("JPEG", "MPO", "WEBP"):
      raise UserError(f"{file}: is a {image.format}, whose pixels are not exact; expected such as a PNG")
    numbers = np.asarray(image, np.uint8)
    if size is None:
      return numbers
    grey = Image.fromarray(numbers)
    return np.asarray(RESIZES[resize](grey, (size[1], size[0]), Image.Resampling.NEAREST, LARGEST), np.uint8)
