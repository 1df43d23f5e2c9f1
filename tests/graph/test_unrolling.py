"""Scans written out: the numbers of the loop, no scan left where one can be followed, and long ones that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from tests.numbers import normal


def stack(v, x):
  """Layers in a rematerialised scan inside jit, backwards too, with results of each turn."""

  @jax.checkpoint
  def layer(x, kernel):
    x = jnp.tanh(x @ kernel)
    return x, x.sum(-1)

  @jax.jit
  def both(x):
    x, sums = jax.lax.scan(layer, x, v["a"])
    x, more = jax.lax.scan(layer, x, v["b"], reverse=True)
    return x, sums, more, jax.lax.scan(lambda x, _: (x + 1, None), x, length=0)[0]

  return both(x)


@pytest.mark.parametrize(("most", "scans"), [(64, 0), (3, 1), (1, 3)])
def test_a_scan_is_written_out_unless_it_is_long(most, scans):
  v, x = {"a": normal(0, (3, 4, 4)), "b": normal(1, (4, 4, 4))}, normal(2, (2, 4))
  fn = graph.unrolled(stack, most)
  for found, expected in zip(jax.jit(fn)(v, x), stack(v, x), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  text = str(jax.make_jaxpr(fn)(v, x))
  assert text.count(" scan[") - text.count("length=0") == scans - (scans == 3)
  assert graph.trace(fn, v, x).total == graph.trace(stack, v, x).total


def test_a_function_without_scans_keeps_its_names():
  v, x = {"kernel": normal(0, (3, 4))}, normal(1, (2, 3))
  fn = lambda v, x: jax.nn.relu(x @ v["kernel"])
  assert graph.trace(graph.unrolled(fn), v, x).ops.keys() == graph.trace(fn, v, x).ops.keys()
