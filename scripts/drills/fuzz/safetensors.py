"""Mutated model files: bytes changed, and values of their headers and of their descriptions, with right checksums."""

import functools
import json
import random
import tempfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import quant
from leanax.engine.store import model_file
from leanax.pipeline import trained
from leanax.pipeline.recipe import Recipe
from leanax.pipeline.trained import Trained
from scripts.drills.fuzz import mutations
from scripts.drills.fuzz.mutations import changed, damaged

LIMIT = 512
SECONDS = 2  # of a trace; the reader's own limit is higher
PREPROCESS = {"scale": 1 / 255, "mean": [0.0], "std": [1.0]}


@functools.cache
def seeds() -> list[bytes]:
  """Returns true files: a float model, one with batch norms folded, one on grids, and arrays of another program."""
  recipe = Recipe("zoo.mlp:MLP", {"widths": (4,), "classes": 3}, (2, 2, 1), ("a", "b", "c"), PREPROCESS)
  images = jnp.zeros((1, 2, 2, 1))
  plain = Trained(recipe, trained.initial(recipe, jax.random.key(0), images))
  net = quant.post_training(trained.net(plain), [images + 1], "w8a8")
  whole = Trained(recipe._replace(edits=tuple(net.edits)), net.variables)
  kwargs = {"blocks": (1,), "widths": (2,), "classes": 3}
  small = Recipe("zoo.resnet:ResNet", kwargs, (4, 4, 1), ("a", "b", "c"), PREPROCESS)
  folded = trained.fold(Trained(small, trained.initial(small, jax.random.key(0), trained.example(small))))
  with tempfile.TemporaryDirectory(dir=mutations.MEMORY) as place:
    path = Path(place, "x.safetensors")
    files = []
    for one in (plain, whole, folded):
      trained.save(path, one, stage="x")
      files.append(path.read_bytes())
    keys = {"key": jax.random.key(0), "codes": np.arange(-4, 4).astype("int4"), "empty": np.zeros((0, 3))}
    model_file.save_tree(path, keys, {"a": [1, {"b": None}]})
    return [*files, path.read_bytes()]


def mutant(draw: random.Random, files: list[bytes]) -> bytes:
  """Returns a file that somebody damaged or made up, from true ones."""
  content = draw.choice(files)
  if draw.randrange(5) == 0:
    return damaged(draw, content, files)
  length = int.from_bytes(content[:8], "little")
  head, body = json.loads(content[8 : 8 + length]), content[8 + length :]
  if draw.randrange(8) == 0:
    changed(draw, head)
  else:
    text = head["__metadata__"][model_file.KEY].partition(" ")[2]
    description = json.loads(text)
    for _ in range(draw.randint(1, 3)):
      changed(draw, draw.choice((description, *2 * [description.get("meta", description)])))
    text = json.dumps(description)
    if draw.randrange(10) == 0:
      text = damaged(draw, text.encode(), [text.encode()]).decode("latin-1")
    head["__metadata__"][model_file.KEY] = f"{zlib.crc32(text.encode('utf-8', 'surrogatepass'))} {text}"
  written = json.dumps(head).encode()
  return len(written).to_bytes(8, "little") + written + body


def case(content: bytes) -> str:
  """Reads a file as a model and as weights."""
  packed = mutations.folder({"x.safetensors": content})
  before, trained.TRACING = trained.TRACING, SECONDS
  try:
    return mutations.read(packed, _read)
  finally:
    trained.TRACING = before


def _read(place: Path) -> Any:
  if "leanax" in model_file.read_safetensors(place / "x.safetensors")[1]:
    model_file.load_tree(place / "x.safetensors")
  return trained.load(place / "x.safetensors")
