"""Decodes image files to 8-bit pixels, as a viewer shows them, or refuses them in a sentence that names the file.

Images are read as follows:

- upright, by their EXIF orientation;
- the upper 8 of 16 bits per channel, grey and colour alike (65,535 becomes 255, and 257 n becomes n);
- transparent pixels over white;
- CMYK as (255 - C)(255 - K) / 255, and so on; colour profiles are not applied;
- the first of a camera's several pictures in one JPEG (MPO).

Images are resized by pillow's bilinear filter, antialiased where they become smaller, in one of the ways of `RESIZES`:
"stretch" fits both sides; "crop" keeps the aspect and takes the largest centred part of the wanted aspect, whose edges
may lie inside of pixels (`ImageOps.fit`); "pad" keeps the aspect and fits the whole image, with black around it: the
shorter side, and the border before it, are rounded, halves to the even number (`ImageOps.pad`).

Animations and pages, floats and 32-bit integers, whose range is undefined, and CMYK JPEGs that may be inverted are
refused.
"""

import contextlib
import io
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from leanax.core import ranges
from leanax.core.errors import UserError
from leanax.engine.data.stock import first_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Detected by content, not by suffix. Pillow tries all formats by default, such as EPS, for which it starts a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
ORIENTATION = 0x0112
KINDS = "PNG, JPEG, WebP, BMP, GIF or TIFF"


def _stretch(image: Any, size: tuple[int, int], method: int, fill: int = 0) -> Any:
  return image.resize(size, method)


def _crop(image: Any, size: tuple[int, int], method: int, fill: int = 0) -> Any:
  from PIL import ImageOps

  return ImageOps.fit(image, size, method)


def _pad(image: Any, size: tuple[int, int], method: int, fill: int = 0) -> Any:
  from PIL import ImageOps

  sides = image.width * size[1], image.height * size[0]
  if round(min(sides) / max(sides) * size[sides[0] > sides[1]]) == 0:  # pillow gives black alone
    raise ValueError(f"it has {image.height}x{image.width} pixels, of which a side is 0 wide when it is padded")
  return ImageOps.pad(image, size, method, color=fill)


RESIZES: dict[str, Callable[..., Any]] = {"stretch": _stretch, "crop": _crop, "pad": _pad}


def check_size(size: Sequence[int] | None) -> None:
  """Refuses a size that is neither None nor (height, width) of whole numbers above 0."""
  if size is not None:
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
      raise UserError(f"data.size is {size!r}; expected (height, width)")
    for length in size:
      ranges.check("data.size: height and width", length, ranges.whole(1))


def decode_image(
  data: bytes, mode: str, size: tuple[int, int] | None, place: str, resize: str = "stretch"
) -> np.ndarray:
  """Decodes an image file to (height, width, channels) uint8 pixels of one colour mode.

  Args:
    data: the file's bytes.
    mode: pillow's name of the colour mode: "L", "RGB", or "RGBA", which keeps transparency.
    size: (height, width) to resize to, or None.
    place: the file's name in error messages.
    resize: the way, of `RESIZES`.

  Raises:
    UserError: the bytes are not an image, are truncated, or cannot be converted to 8-bit pixels.
  """
  from PIL import Image

  with opened(data, place) as image:
    _check(image)
    image = _flat(_eight_bits(_upright(image)), mode)
    if size is not None and image.size != (size[1], size[0]):
      image = RESIZES[resize](image, (size[1], size[0]), Image.Resampling.BILINEAR)
  pixels = np.asarray(image, np.uint8)
  return pixels if pixels.ndim == 3 else pixels[..., None]


@contextlib.contextmanager
def opened(data: bytes, place: str) -> Iterator[Any]:
  """Yields pillow's image of a file's bytes, its pixels not read yet; what pillow raises in the block is a sentence.

  Raises:
    UserError: the bytes are no image, damaged, or have more pixels than pillow takes for honest.
  """
  from PIL import Image, UnidentifiedImageError

  if not data:
    raise UserError(f"{place}: is not a readable image: it is empty")
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # pillow warns about files that every viewer reads
      warnings.simplefilter("error", Image.DecompressionBombWarning)
      yield Image.open(io.BytesIO(data), formats=FORMATS)
  except UserError:
    raise
  except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
    raise UserError(f"{place}: has more than {Image.MAX_IMAGE_PIXELS:,} pixels; expected a smaller picture") from error
  except UnidentifiedImageError as error:
    raise UserError(f"{place}: is not a readable image: it is damaged or none; expected {KINDS}") from error
  except Exception as error:  # a damaged file may raise anything
    raise UserError(f"{place}: is not a readable image: {first_line(error)}") from error


def _check(image: Any) -> None:
  """Refuses, before its pixels are read, an image that pillow would misread.

  Raises:
    ValueError: gives the reason.
  """
  frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
  if frames > 1:
    raise ValueError(f"it has {frames} frames or pages; expected one picture")
  if image.mode in ("I", "F"):
    raise ValueError(f"its pixels are 32-bit {'integers' if image.mode == 'I' else 'floats'}; expected 8 or 16 bits")
  if image.format == "TIFF" and image.mode.startswith("I;16"):
    bits, black = image.tag_v2.get(258), image.tag_v2.get(262)
    if bits != (16,) or black != 1:
      raise ValueError("its grey pixels have neither 8 bits nor 16 with white as the highest number; expected that")
  if image.format in ("JPEG", "MPO") and image.mode == "CMYK" and "adobe" not in image.info:
    raise ValueError("it is CMYK without Adobe's mark, so nothing says whether it is inverted; expected RGB")
  if image.format == "PNG" and "transparency" in image.info and image.mode != "P":
    stored = image.tile[0][3]  # pillow compares the transparent colour with pixels already scaled to 8 bits
    if stored not in ("1", "L", "RGB"):
      raise ValueError("one colour of it is transparent, and its channels have not 1 or 8 bits; expected alpha instead")


def _upright(image: Any) -> Any:
  """Rotates the image by its EXIF orientation, and loads its pixels."""
  from PIL import ImageOps

  image.load()
  exif = image.getexif()
  if ORIENTATION not in exif:  # pillow drops all EXIF tags if one of them points beyond the end
    exif[ORIENTATION] = _orientation(image.info.get("exif", b""))
  return ImageOps.exif_transpose(image)


def _orientation(block: bytes) -> int:
  """Returns the orientation in the first directory of an EXIF block; 1 where there is none."""
  block = block.removeprefix(b"Exif\0\0")
  order = {b"II": "<", b"MM": ">"}.get(block[:2], "<")
  try:
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
      tag, _, _, value = struct.unpack_from(f"{order}HHIH", block, place)
      if tag == ORIENTATION:
        return value
  except struct.error:  # the block is truncated
    pass
  return 1


def _eight_bits(image: Any) -> Any:
  from PIL import Image

  return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode.startswith("I;16") else image


def _flat(image: Any, mode: str) -> Any:
  """Converts to one colour mode; transparent pixels are blended over white in integers."""
  from PIL import Image

  if mode != "RGBA" and image.has_transparency_data:
    pixels = np.asarray(image.convert("RGBA")).astype(np.uint16)
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    image = Image.fromarray(((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8))
  return image.convert(mode)
