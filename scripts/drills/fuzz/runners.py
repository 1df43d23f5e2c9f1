"""Cases of files that run: small networks, float and int8, and a spoilt file opened and run in its runtime."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

import quant
from leanax import deploy, graph
from leanax.core.errors import UserError
from leanax.deploy import ir, trial

SECONDS = 15  # of a first run; a user's file has two minutes
LIMIT = 2048  # MiB: activations of 2^27 numbers are allowed, and the runtime's own copies


@functools.cache
def networks() -> tuple[ir.Network, ...]:
  """Returns small networks that hold many kinds of operators, in float and in int8, and one of rows at indices."""
  at_random = np.random.default_rng(0)
  shapes = {"conv": (3, 3, 2, 4), "depth": (3, 3, 1, 4), "dense": (64, 5), "last": (5, 3), "bias": (5,)}
  variables = {name: at_random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

  def convolved(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    spec = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=spec, feature_group_count=groups)

  def images(v: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    x = jax.nn.relu(convolved(x, v["conv"], 1))
    x = x + jax.nn.hard_swish(convolved(x, v["depth"], 4))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jnp.concatenate([x, x[:, ::-1]], -1).transpose(0, 3, 1, 2).reshape(x.shape[0], -1)[:, :64]
    return jax.nn.softmax(jax.nn.sigmoid(x @ v["dense"] + v["bias"]) @ v["last"])

  x = at_random.normal(size=(4, 8, 8, 2)).astype(np.float32)
  net = graph.net(images, variables, x[:1])
  grids = quant.grids(quant.post_training(net, [x], "w8a8"))
  how = deploy.Preprocessing((0.5, 0.5), (0.2, 0.2))
  rows = deploy.lift(lambda v, at: v["last"][at].mean(1), variables, jax.ShapeDtypeStruct((1, 3), jnp.int32))
  return (
    deploy.lift(net.infer, variables, x[:1]),
    deploy.lift(net.infer, variables, x[:1], grids, how),
    rows,
  )


def written(made: deploy.Format) -> list[bytes]:
  return [made.write(network) for network in networks()]


def opened(made: deploy.Format, content: bytes, kind: str) -> str:
  """Opens a file and runs it on zeros and on random numbers; returns "ran", or the sentence without its numbers."""
  before, trial.SECONDS = trial.SECONDS, SECONDS
  try:
    runner = made.open(content)
    for batch in (1, 3):
      runner.codes(tuple(np.zeros((batch, *map(_size, one.shape[1:])), one.dtype) for one in runner.inputs.values()))
  except UserError as error:
    text = str(error)
    assert text and "\n" not in text and len(text) < 700 and text.isprintable(), text
    assert kind in text, text
    return re.sub(r"'.*'|[\d,]+", "#", text)[:64]
  finally:
    trial.SECONDS = before
  return "ran"


def _size(size: int | None) -> int:
  return int(size or 0)
