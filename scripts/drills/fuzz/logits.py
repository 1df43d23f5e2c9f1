"""Mutated caches of a teacher's logits."""

import functools
import random
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from leanax.engine.store import teacher_cache
from leanax.engine.store.teacher_key import Key
from scripts.drills.fuzz import mutations

LIMIT = 256
KEYS = [
  Key("teacher", "data", {}, {}, 1, "", form, top, 7, 5)
  for form, top in (("float32", None), ("int8", None), ("float16", 2))
]


@functools.cache
def seeds() -> list[bytes]:
  """Returns true caches, in several forms."""
  found, at_random = [], np.random.default_rng(0)
  logits = jnp.asarray(at_random.normal(size=(7, 5)), jnp.float32)
  for number, key in enumerate(KEYS):
    with tempfile.TemporaryDirectory(dir=mutations.MEMORY) as place, open("/dev/null", "w") as silence:
      teacher_cache.build(place, key, lambda rows, _: logits[rows], chunk=4, batch=4, stream=silence)
      files = mutations.of_folder(Path(place))
      found.append(mutations.folder({f"{number}/{name}": held for name, held in files.items() if held}))
  return found


def mutant(draw: random.Random, files: list[bytes]) -> bytes:
  """Returns a cache that somebody damaged."""
  return mutations.in_folder(draw, draw.choice(files), files)


def case(content: bytes) -> str:
  """Reads a cache."""
  return mutations.read(content, _read)


def _read(place: Path) -> None:
  folder = next(place.iterdir())
  cache = teacher_cache.read(folder, KEYS[int(folder.name)])
  for array in cache.arrays.values():
    array.sum()
