import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from leanax import deploy, graph
from leanax.deploy.lifting import traced
from tests.backends import PRODUCTS, rounded
from tests.numbers import array


def precisions(jaxpr):
  found = []
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in PRODUCTS:
      found.append(eqn.params["precision"])
    for inner in jex.jaxprs_in_params(eqn.params):
      found += precisions(getattr(inner, "jaxpr", inner))
  return found


def fn(w, x):
  """Products everywhere that one can stand, with and without a precision of their own."""

  @jax.custom_jvp
  def f(x):
    return x @ w

  f.defjvp(lambda p, t: (f(*p), t[0] @ w))

  @jax.custom_vjp
  def g(x):
    return jax.lax.dot(x, w, precision=jax.lax.Precision.DEFAULT)

  g.defvjp(lambda x: (g(x), None), lambda _, c: (c @ w.T,))
  x, _ = jax.lax.scan(lambda c, _: (jax.nn.relu(jnp.matmul(c, w, precision="default")), None), x @ w, None, length=2)
  x = jax.lax.cond(x.sum() > 0, lambda v: v @ w, lambda v: v @ w.T, x)
  x = jax.checkpoint(lambda v: v @ w)(x)
  x = jax.lax.while_loop(lambda c: c.sum() < -1e9, lambda c: c @ w, x)
  x = jax.jit(f)(x) + g(x)
  return {"out": jax.lax.conv(x[None, None], w[None, None], (1, 1), "SAME", precision="default")}


def test_every_product_gets_the_highest_precision():
  w, x = jnp.eye(4), jnp.ones((4, 4))
  found = precisions(jax.make_jaxpr(graph.highest_precision(fn))(w, x).jaxpr)
  assert len(found) == 9
  assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}
  assert len(precisions(jax.make_jaxpr(fn)(w, x).jaxpr)) == 9
  np.testing.assert_array_equal(jax.jit(graph.highest_precision(fn))(w, x)["out"], jax.jit(fn)(w, x)["out"])


def test_a_lifted_model_is_proven_at_the_highest_precision(monkeypatch):
  """Where products are rounded the proof holds all the same, for a model that asks for less precision too."""
  rng = np.random.default_rng(0)
  w = array(rng.normal(size=(40, 8)), jnp.float32)

  def model(v, x):
    return jnp.matmul(jax.nn.relu(jnp.matmul(x, v["a"], precision="default")), v["b"])

  variables, x = {"a": w, "b": w.T}, jnp.zeros((1, 40))
  plain = traced.rebind

  def on_an_accelerator(eqn, inputs, *more):
    return tuple(jax.tree.leaves(rounded(lambda *xs: plain(eqn, xs, *more), 8)(*map(jnp.asarray, inputs))))

  monkeypatch.setattr(traced, "rebind", on_an_accelerator)
  network = deploy.lift(model, variables, x)
  assert len(network.layers) == 2
