"""Mutated .stablehlo files: bytes changed, and those of the program inside of them, with right checksums."""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np

from leanax import deploy, graph
from leanax.deploy.formats.stablehlo.writer import PROGRAM
from scripts.drills.fuzz import runners
from scripts.drills.fuzz.mutations import changed, damaged

LIMIT = 4096  # of XLA, which keeps what it has compiled


@functools.cache
def seeds() -> list[bytes]:
  """Returns true files, of a dense net and of a convolution."""
  at_random = np.random.default_rng(0)
  variables = {"w": at_random.normal(size=(4, 3)).astype(np.float32), "b": np.ones(3, np.float32)}
  dense = graph.net(lambda v, x: jax.nn.softmax(jnp.tanh(x @ v["w"] + v["b"])), variables, jnp.zeros((1, 4)))
  kernel = {"k": at_random.normal(size=(3, 3, 1, 2)).astype(np.float32)}

  def convolved(v: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    spec = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, v["k"], (1, 1), "SAME", dimension_numbers=spec).mean((1, 2))

  images = graph.net(convolved, kernel, jnp.zeros((1, 4, 4, 1)))
  return [deploy.stablehlo(platforms="cpu").write(deploy.Model(net)) for net in (dense, images)]


def mutant(draw: random.Random, files: list[bytes]) -> bytes:
  """Returns a file that somebody damaged or made up, from true ones."""
  content = draw.choice(files)
  if draw.randrange(8) == 0:
    return damaged(draw, content, files)
  held, grids, metadata = deploy.unpack(content)
  held = {**held}
  if draw.randrange(6) == 0:
    changed(draw, metadata)
  else:
    programs = [deploy.unpack(one).variables[PROGRAM].tobytes() for one in files]
    held[PROGRAM] = np.frombuffer(damaged(draw, held[PROGRAM].tobytes(), programs), np.uint8)
  try:
    return deploy.pack(held, grids, metadata)
  except Exception:
    return damaged(draw, content, files)


def case(content: bytes) -> str:
  """Opens a file and runs it."""
  return runners.opened(deploy.stablehlo(), content, "StableHLO")
