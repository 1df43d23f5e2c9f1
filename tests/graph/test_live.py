"""Operations that outputs depend on are found through calls of jitted functions; all others are dropped."""

import jax
import jax.numpy as jnp
import numpy as np

from leanax import graph

VARIABLES = {"params": {name: {"w": jnp.full((3, 3), i + 1.0)} for i, name in enumerate(("a", "b", "dead"))}}
X = jnp.arange(6.0).reshape(2, 3)


def network(variables, x):
  p = variables["params"]

  @jax.jit
  def both(p, x):
    hidden = jax.nn.relu(x @ p["a"]["w"])
    return hidden, jax.nn.relu(hidden @ p["dead"]["w"])

  hidden, dead = both(p, x)
  return hidden @ p["b"]["w"], dead @ p["dead"]["w"]


def kept(variables, x):
  return network(variables, x)[0]


def test_leaves_read_are_those_that_change_the_outputs():
  assert graph.leaves_read(kept, VARIABLES, X) == {"a/w", "b/w"}
  assert graph.leaves_read(network, VARIABLES, X) == {"a/w", "b/w", "dead/w"}
  shapes = jax.eval_shape(lambda: (VARIABLES, X))
  assert graph.leaves_read(kept, *shapes) == {"a/w", "b/w"}


def test_a_live_function_computes_the_same_and_nothing_else():
  alive = graph.live(kept)
  np.testing.assert_array_equal(alive(VARIABLES, X), kept(VARIABLES, X))
  assert set(graph.trace(kept, VARIABLES, X).sites) > set(graph.trace(alive, VARIABLES, X).sites)
  assert [op.name for op in graph.trace(alive, VARIABLES, X).sites.values() if op.kind == "dot"] == ["a/w", "b/w"]
  jax.tree.map(np.testing.assert_array_equal, graph.live(network)(VARIABLES, X), network(VARIABLES, X))


def test_it_is_differentiated_and_vectorised_as_the_function_is():
  def loss(f):
    return lambda variables, x: jnp.sum(f(variables, x) ** 2)

  actual, desired = (jax.grad(loss(f))(VARIABLES, X) for f in (graph.live(kept), kept))
  jax.tree.map(np.testing.assert_array_equal, actual, desired)
  rows = jax.vmap(lambda x: graph.live(kept)(VARIABLES, x[None])[0])(X)
  np.testing.assert_allclose(rows, kept(VARIABLES, X), rtol=1e-6)
