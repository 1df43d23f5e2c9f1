"""Files that somebody damaged: bytes changed, cut, moved and spliced."""

import random


def damaged(draw: random.Random, content: bytes, others: list[bytes]) -> bytes:
  """Returns a file with one to four changes, some with parts of the others."""
  found = bytearray(content)
  for _ in range(draw.randint(1, 4)):
    start, length = draw.randrange(len(found) + 1), draw.choice((1, 1, 1, 2, 4, 8, 100))
    match draw.randrange(5):
      case 0:
        found[start : start + length] = draw.randbytes(min(length, len(found) - start))
      case 1:
        del found[start : start + length]
      case 2:
        found[start:start] = draw.randbytes(length)
      case 3:
        del found[start:]
      case 4:
        other = draw.choice(others)
        place = draw.randrange(len(other) + 1)
        found[start : start + length] = other[place : place + length]
  return bytes(found)
