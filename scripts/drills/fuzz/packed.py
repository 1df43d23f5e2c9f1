"""Mutated packed files: bytes changed, headers with other values, and other streams.

Half of the mutants have their checksum put right, and so reach what is behind it.
"""

import json
import random
import re
import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np

import quant
from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy.packed import header
from scripts.drills.fuzz.mutations import changed, damaged

LIMIT = 256
UNPACKED = 2**22  # bytes of arrays that a case may unpack to; the largest of `seeds` has 10 kB


def seeds() -> list[bytes]:
  """Returns true files: of codes, masks, planes and plain bytes; with several grids, and with none."""
  at_random = np.random.default_rng(0)
  w = at_random.normal(size=(20, 15)).astype(np.float32)
  pruned = np.where(np.abs(w) < 1.3, np.float32(0), w)
  largest = jnp.asarray(np.abs(w).max(0))
  blocks = quant.Grid(jnp.ones((5, 15)) / 4, jnp.zeros((), jnp.int32), 4, True, True)
  split = quant.Grid(jnp.ones((5, 15)) / 4, jnp.zeros((5, 15), jnp.int32), 4, True, True, (0, 2), (5, 4, 15))
  tree = {"params": {"w": w, "p": pruned, "b": np.arange(40, dtype=np.int32)}, "rest": [np.zeros(300), (np.ones(2),)]}
  return [
    deploy.pack(tree, {"w": quant.symmetric(largest, 8, axis=1), "p": blocks}, {"made": {"by": [1, 2.5, "x"]}}),
    deploy.pack(tree, {"w": quant.affine(jnp.float32(-2), jnp.float32(3), 5, signed=False), "p": split}),
    deploy.pack(tree, {"w": quant.symmetric(largest, 16, axis=1)}),
    deploy.pack({"w": pruned}, {"w": quant.symmetric(jnp.float32(2), 5, format="power_of_two")}),
    deploy.pack({"a": w, 3: np.tile(np.arange(50, dtype=np.uint8), 100)}),
    deploy.pack({}),
  ]


def mutant(draw: random.Random, files: list[bytes]) -> bytes:
  """Returns a file that somebody damaged or made up, from true ones."""
  content = draw.choice(files)
  kind = draw.randrange(6)
  if kind < 3:
    spoilt = damaged(draw, content, files)
    return spoilt if kind == 0 else repaired(spoilt)
  head, body = header.read(content)
  if kind == 3:  # a true header, and other streams
    parts = bytearray(body)
    for _ in range(draw.randint(1, 8)):
      if parts:
        parts[draw.randrange(len(parts))] = draw.randrange(256)
    return header.write(head, [bytes(parts)])
  for _ in range(draw.randint(1, 3)):
    changed(draw, head)
  text = json.dumps(head).encode()
  if kind == 5:
    text = damaged(draw, text, [content])
  return framed(zlib.compress(text), bytes(body))


def framed(packed: bytes, body: bytes) -> bytes:
  """Returns a file of a compressed header and streams, its length and checksum as they have to be."""
  whole = packed + body
  numbers = (header.FORM, len(packed), zlib.crc32(whole))
  return header.MAGIC + b"".join(number.to_bytes(4, "little") for number in numbers) + whole


def repaired(content: bytes) -> bytes:
  """Returns a file with the checksum of its bytes."""
  return content[:16] + zlib.crc32(content[20:]).to_bytes(4, "little") + content[20:]


def case(content: bytes) -> str:
  """Reads a file; returns "read", or the sentence that refuses it without its numbers.

  Raises:
    AssertionError: it is read and larger than allowed, or the sentence is none.
  """
  try:
    found = deploy.unpack(content, UNPACKED)
  except UserError as error:
    text = str(error)
    assert text.startswith("the packed file ") and "\n" not in text and len(text) < 500 and text.isprintable(), text
    return re.sub(r"'.*'|[\d,]+", "#", text.removeprefix("the packed file ").removeprefix("is damaged: "))[:60]
  sizes = {id(leaf): leaf.nbytes for leaf in _leaves(found.variables)}
  assert sum(sizes.values()) <= UNPACKED
  return "read"


def _leaves(tree: Any) -> list[np.ndarray]:
  if isinstance(tree, dict | list | tuple):
    return [leaf for child in (tree.values() if isinstance(tree, dict) else tree) for leaf in _leaves(child)]
  return [tree] if isinstance(tree, np.ndarray) else []
