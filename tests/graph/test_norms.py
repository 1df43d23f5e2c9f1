"""Each batch norm that is found, and why it stays where it does."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from tests.graph import models


def norm(axis=-1):
  return nn.BatchNorm(use_running_average=True, axis=axis)


class Everywhere(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = norm()(x)
    x = norm()(nn.Conv(4, (3, 3))(x))
    x = norm()(nn.max_pool(x, (2, 2), (2, 2)))
    x = norm()(nn.relu(x))
    y = nn.Conv(4, (3, 3))(x)
    x = norm()(y) + y
    dense = nn.Dense(4)
    x = norm()(dense(norm()(dense(x))))
    twice = norm()
    x = twice(nn.Dense(4)(twice(nn.Dense(4)(x))))
    x = nn.LayerNorm()(x) * self.param("gain", nn.initializers.ones, (4,))  # neither is one
    x = norm((-2, -1))(nn.DenseGeneral((2, 3))(x))
    return nn.Dense(3)(norm()(jax.checkpoint(jnp.tanh)(x).mean((1, 2))))


FOUND = {
  "0": "it stands at the function's input",
  "1": "Conv_0/kernel",
  "2": "it follows 'Conv_0/kernel:max_pool', and not a dot or a convolution",
  "3": "it follows 'max', and not a dot or a convolution",
  "4": "what it normalises, 'Conv_1/bias', has another reader",
  "6": "the kernel of 'Dense_0/kernel' is used more than once, or computed from others",
  "5": "the kernel of 'Dense_0/kernel#1' is used more than once, or computed from others",
  "7": "Dense_2/kernel",
  "7#1": "Dense_1/kernel",
  "8": "DenseGeneral_0/kernel",
  "9": "it follows .*, and not a dot or a convolution",
}


def test_linen():
  module, x = Everywhere(), models.images(2)
  variables = models.made(module, x)
  norms = graph.batch_norms(module.apply, variables, x)
  found = {norm.name.removeprefix("batch_stats/BatchNorm_"): norm for norm in norms}
  assert list(found) == list(FOUND)
  for name, words in FOUND.items():
    if found[name].folded:
      assert (found[name].site, found[name].reason) == (words, "")
    else:
      assert found[name].site is None and re.fullmatch(words, found[name].reason)
  fn2, variables2, edits = models.folded(module.apply, variables, x)
  assert [e["site"] for e in edits] == [norm.site for norm in found.values() if norm.folded]
  np.testing.assert_allclose(jax.jit(fn2)(variables2, x), jax.jit(module.apply)(variables, x), rtol=1e-5, atol=1e-5)
  assert graph.batch_norms(fn2, variables2, x) == [norm for norm in found.values() if not norm.folded]


def textbook(y, p):
  return (y - p["m"]) / jnp.sqrt(p["v"] + 1e-3) * p["g"] + p["b"]


def stats(*shape):
  return {k: jnp.abs(models.normal(i, *shape)) + 0.5 for i, k in enumerate("gbmv")}


def scanned(v, x):
  return jax.lax.scan(lambda x, layer: (textbook(x @ layer["w"], layer["bn"]), None), x, v)[0]


def test_in_a_scan():
  layers = {"w": models.normal(5, 2, 3, 3), "bn": stats(2, 3)}
  assert graph.batch_norms(scanned, layers, jnp.ones((2, 3))) == [("bn", None, "it is inside a scan", None)]


@pytest.mark.parametrize(
  ("fn", "reason"),
  [
    (lambda v, x: textbook(x @ v["w"], v["bn"]).sum(), "the kernel of '0' has no place beside it for a bias"),
    (
      lambda v, x: jax.lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, textbook(c[1] @ v["w"], v["bn"])), (0, x)
      ),
      "it is inside a while loop",
    ),
    (
      lambda v, x: textbook(x @ v["w"], {**v["bn"], "m": v["bn"]["m"] / 0}),
      "the numbers would not be finite in float32",
    ),
    (
      lambda v, x: textbook(x @ v["w"], v["bn"]) + v["bn"]["b"][:, None],
      "it is not the same at every position of what 'w' gives",
    ),
    (lambda v, x: textbook(x @ jnp.eye(3), v["bn"]) @ v["w"], "it follows 'input:dot', whose kernel is a constant"),
    (lambda v, x: textbook(x @ x.T @ x, v["bn"]) @ v["w"], "it follows .*, which multiplies two activations"),
    (lambda v, x: textbook(x @ (v["w"] * 2), v["bn"]), "the kernel of 'w' is used more than once, or computed"),
    (lambda v, x: textbook(jax.checkpoint(jnp.matmul)(x, v["w"]), v["bn"]), "a checkpoint, a loop or a branch stands"),
  ],
)
def test_reasons(fn, reason):
  variables = {"w": models.normal(5, 3, 3), "bn": stats(3)}
  if "no place" in reason:
    inner, variables = fn, [models.normal(5, 3, 3), stats(3)]

    def fn(v, x):
      return inner({"w": v[0], "bn": v[1]}, x)

  (norm,) = graph.batch_norms(fn, variables, jnp.ones((3, 3)))
  assert norm.site is None and re.match(reason, norm.reason), norm
  assert models.folded(fn, variables, jnp.ones((3, 3)))[2] == []


def test_models_without():
  case = models.mlp()
  assert graph.batch_norms(case.fn, case.variables, case.x) == []
