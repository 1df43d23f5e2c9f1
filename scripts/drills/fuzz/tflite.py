"""Mutated .tflite files: bytes changed, and numbers of the flatbuffer: its offsets, sizes, indices and types."""

import functools
import random

from leanax import deploy
from scripts.drills.fuzz import runners
from scripts.drills.fuzz.mutations import damaged

LIMIT = runners.LIMIT
NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 127, 128, 255, 256, 2**15, 2**16, 2**24, 2**27, 2**31 - 1, 2**31, 2**32 - 1)


@functools.cache
def seeds() -> list[bytes]:
  """Returns true files."""
  return runners.written(deploy.litert())


def mutant(draw: random.Random, files: list[bytes]) -> bytes:
  """Returns a file that somebody damaged, from true ones."""
  content = draw.choice(files)
  if draw.randrange(3) == 0:
    return damaged(draw, content, files)
  found = bytearray(content)
  for _ in range(draw.randint(1, 3)):
    size = draw.choice((1, 2, 4, 4))
    place = size * draw.randrange(2, len(found) // size)
    now = int.from_bytes(found[place : place + size], "little")
    number = draw.choice((*NUMBERS, now + 1, now - 1, now * 2)) % 2 ** (8 * size)
    found[place : place + size] = number.to_bytes(size, "little")
  return bytes(found)


def case(content: bytes) -> str:
  """Opens a file and runs it."""
  return runners.opened(deploy.litert(), content, "LiteRT")
