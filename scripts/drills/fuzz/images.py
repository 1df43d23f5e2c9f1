"""Mutated pictures: bytes changed, and PNGs of other sizes and kinds, with right checksums."""

import functools
import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from leanax.engine.data import masks, pictures
from scripts.drills.fuzz import mutations
from scripts.drills.fuzz.mutations import damaged

LIMIT = 2048  # MiB: a picture may have 89 million pixels
SIZES = (0, 1, 2, 7, 255, 256, 65535, 50_000, 9_000, 2**31 - 1, 2**31, 2**32 - 1)
BOMB = zlib.compress(bytes(2**24))  # of 16 kB
PNG = b"\x89PNG\r\n\x1a\n"


@functools.cache
def seeds() -> list[bytes]:
  """Returns true pictures: kind by kind of file, colour mode and depth."""
  from PIL import Image

  at_random = np.random.default_rng(0)
  pixels = at_random.integers(0, 256, (9, 7, 4), np.uint8)
  made = {
    "PNG": ("L", "RGB", "RGBA", "P", "1", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("L", "RGB", "P"),
    "GIF": ("P",),
    "TIFF": ("L", "RGB", "I;16", "1"),
  }
  found = []
  for kind, modes in made.items():
    for mode in modes:
      image = Image.fromarray(pixels)
      image = (
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        if mode == "I;16"
        else image.convert("RGB").convert(mode)
      )
      content = io.BytesIO()
      exif = Image.Exif()
      exif[0x0112] = 6
      image.save(content, kind, **({"exif": exif} if kind in ("JPEG", "WEBP", "PNG") else {}))
      found.append(content.getvalue())
  return found


def mutant(draw: random.Random, files: list[bytes]) -> bytes:
  """Returns a picture that somebody damaged or made up, from true ones."""
  content = draw.choice(files)
  if content[:8] != PNG or draw.randrange(2):
    return damaged(draw, content, files)
  chunks = _chunks(content)
  for _ in range(draw.randint(1, 2)):
    _change(draw, chunks)
  return PNG + b"".join(
    struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
  )


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
  found, at = [], 8
  while at < len(content):
    (length,) = struct.unpack_from(">I", content, at)
    found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
    at += 12 + length
  return found


def _change(draw: random.Random, chunks: list[tuple[bytes, bytes]]) -> None:
  place = draw.randrange(len(chunks))
  kind, body = chunks[place]
  match draw.randrange(5):
    case 0 if body:
      chunks[place] = kind, damaged(draw, body, [body])
    case 1:
      chunks.insert(place, draw.choice(chunks))
    case 2 if len(chunks) > 1:
      del chunks[place]
    case 3:
      chunks.insert(place, (draw.choice((b"zTXt", b"iCCP", b"iTXt", b"acTL", b"tRNS")), b"a\0\0" + BOMB))
    case _:
      place = next((place for place, (kind, _) in enumerate(chunks) if kind == b"IHDR"), None)
      if place is not None and len(chunks[place][1]) == 13:
        width, height, *rest = struct.unpack(">IIBBBBB", chunks[place][1])
        width, height = draw.choice((width, *SIZES)), draw.choice((height, *SIZES))
        rest[draw.randrange(5)] = draw.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chunks[place] = b"IHDR", struct.pack(">IIBBBBB", width, height, *rest)


def case(content: bytes) -> str:
  """Decodes a picture, as an image and as a mask."""
  return mutations.read(mutations.folder({"x.png": content}), _read)


def _read(place: Path) -> Any:
  file = place / "x.png"
  mask = None
  try:
    mask = masks.read_mask(file, None)
  finally:
    image = pictures.decode_image(file.read_bytes(), "RGB", (4, 4), str(file))
    assert image.shape == (4, 4, 3)
  return mask, image
