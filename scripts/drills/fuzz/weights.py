"""Mutated weights of other programs: safetensors and msgpack of flax, as `weight_files` reads them."""

import functools
import random

import jax.numpy as jnp
import numpy as np

from leanax.engine.store import weight_files
from scripts.drills.fuzz import mutations
from scripts.drills.fuzz.mutations import damaged

LIMIT = 512


@functools.cache
def seeds() -> list[bytes]:
  """Returns true files."""
  import safetensors.numpy
  from flax import serialization

  at_random = np.random.default_rng(0)
  kernel = at_random.normal(size=(3, 2)).astype(np.float32)
  arrays = {"a.weight": kernel, "b": np.arange(4), "c": np.zeros((), np.float16)}
  tree = {"params": {"a": {"kernel": kernel, "bias": jnp.ones(3, jnp.bfloat16)}}, "step": 3, "rest": [1.5, "x"]}
  more = {"state": {"0": np.zeros((2, 0)), "1": np.complex64(1j)}, "name": "net", "none": None, "flags": {"a": True}}
  files = {
    "a.safetensors": safetensors.numpy.save(arrays, {"format": "pt"}),
    "b.msgpack": serialization.msgpack_serialize(tree),
    "c.msgpack": serialization.msgpack_serialize(more),
  }
  return [mutations.folder({f"x.{name.partition('.')[2]}": content}) for name, content in files.items()]


def mutant(draw: random.Random, files: list[bytes]) -> bytes:
  """Returns a file that somebody damaged, from true ones."""
  contents = [next(iter(mutations.files_of(one).items())) for one in files]
  name, content = draw.choice(contents)
  return mutations.folder({name: damaged(draw, content, [held for other, held in contents if other == name])})


def case(content: bytes) -> str:
  """Reads a file."""
  return mutations.read(content, lambda place: weight_files.read(next(place.iterdir())))
