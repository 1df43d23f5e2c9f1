"""Mutated directories of Orbax with weights of another program, as `weight_files` reads them."""

import functools
import random
import tempfile
from pathlib import Path

import jax.numpy as jnp

from leanax.engine.store import weight_files
from scripts.drills.fuzz import mutations

LIMIT = 1024


@functools.cache
def seeds() -> list[bytes]:
  """Returns a true directory."""
  import orbax.checkpoint as ocp

  with tempfile.TemporaryDirectory(dir=mutations.MEMORY) as place:
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(
        Path(place, "x"), {"params": {"a": jnp.ones((3, 2)), "b": jnp.arange(4)}, "step": jnp.zeros(())}
      )
    return [mutations.folder({f"x/{name}": held for name, held in mutations.of_folder(Path(place, "x")).items()})]


def mutant(draw: random.Random, files: list[bytes]) -> bytes:
  """Returns a directory that somebody damaged."""
  return mutations.in_folder(draw, draw.choice(files), files)


def case(content: bytes) -> str:
  """Reads a directory."""
  return mutations.read(content, lambda place: weight_files.read(place / "x"))
