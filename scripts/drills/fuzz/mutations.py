"""Files that somebody damaged or made up: bytes changed, cut, moved and spliced, and values of JSON replaced.

A folder is one file here, an archive of its files.
"""

import io
import json
import os
import random
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leanax.core.errors import UserError

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # files that no disk has to hold
NASTY = (
  *(0, 1, -1, 2, 7, 8, 255, 256, 2**15, 2**16, 2**31, 2**32 - 1, 2**47, 2**63, 2**64, 10**400),
  *(0.5, -0.0, 1e308, True, False, None, "", "w", "bytes", "planes", "masked", "codes", "float64", "bool", "\ud800"),
  *([], {}, [0], [[]], ["list"], ["tuple", 0], ["dict", [0, 0]], ["grid", "w8"], [[1, 2]], {"w": 0}, [2**30, 2**30]),
)


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


def changed(draw: random.Random, tree: Any) -> None:
  """Changes one value of a tree of JSON, anywhere in it."""
  places = []

  def walk(node: Any) -> None:
    for key in list(node) if isinstance(node, dict) else range(len(node)):
      places.append((node, key))
      if isinstance(node[key], dict | list):
        walk(node[key])

  if isinstance(tree, dict | list):
    walk(tree)
  if not places:
    return
  node, key = draw.choice(places)
  match draw.randrange(4):
    case 0 | 1:
      node[key] = draw.choice(NASTY)
    case 2:
      other, there = draw.choice(places)
      node[key] = json.loads(json.dumps(other[there]))
    case 3:
      del node[key]


def folder(files: Mapping[str, bytes]) -> bytes:
  """Returns the files of a folder, by their paths in it, as one file."""
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w") as archive:
    for name in sorted(files):
      archive.writestr(zipfile.ZipInfo(name), files[name])
  return content.getvalue()


def files_of(content: bytes) -> dict[str, bytes]:
  """Returns what `folder` was given."""
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    return {name: archive.read(name) for name in archive.namelist()}


def of_folder(path: Path) -> dict[str, bytes]:
  """Returns the files below a directory, by their paths in it."""
  return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def in_folder(draw: random.Random, content: bytes, others: list[bytes]) -> bytes:
  """Returns a folder of which one file is damaged, has values of its JSON replaced, or is gone."""
  files = files_of(content)
  name = draw.choice(list(files))
  if draw.randrange(20) == 0:
    del files[name]
    return folder(files)
  try:
    tree = json.loads(files[name])
  except ValueError:
    tree = None
  if isinstance(tree, dict | list) and draw.randrange(4):
    for _ in range(draw.randint(1, 3)):
      changed(draw, tree)
    files[name] = json.dumps(tree).encode()
  else:
    alike = [found[name] for other in others if (found := files_of(other)).get(name)]
    files[name] = damaged(draw, files[name], alike or [files[name]])
  return folder(files)


def read(content: bytes, reader: Callable[[Path], Any], most: int = 1000) -> str:
  """Reads a folder; returns "read", or the sentence that refuses it without its numbers and names.

  Raises:
    AssertionError: the sentence is none.
  """
  with tempfile.TemporaryDirectory(dir=MEMORY) as place:
    for name, held in files_of(content).items():
      path = Path(place, name)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(held)
    try:
      reader(Path(place))
    except UserError as error:
      return outcome(str(error).replace(place, "PLACE"), most)
  return "read"


def outcome(text: str, most: int) -> str:
  """Returns the beginning of a sentence without its numbers and names; AssertionError where it is none."""
  assert text and "\n" not in text and len(text) < most and text.isprintable(), text[:1000]
  return re.sub(r"'.*'|\"|\(.*\)|[\d,.]+", "#", text)[:60]
