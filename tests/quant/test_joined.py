"""Activations that are joined, sliced and chosen from share one grid, whose range is that of all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax import graph
from quant.estimators.lsq import lsq_values
from tests.numbers import normal

V = {name: normal(at, (6, 6)) for at, name in enumerate("abc")} | {"d": normal(4, (12, 2))}
X = normal(5, (8, 6))


def skip(v, x):
  """A join that holds all of both parts, one of which another site reads too, and one of which is dropped out."""
  a = jax.nn.relu(x @ v["a"])
  b = jax.nn.relu(a @ v["b"])
  return jnp.concatenate([jnp.where(v["keep"], b / 0.5, 0.0) if "keep" in v else b, a], -1) @ v["d"]


def shuffled(v, x):
  """Halves, one of which goes through a site, are joined, and again: nothing holds all parts."""
  a = x @ v["a"]
  b = jnp.concatenate([a[:, :3], (a[:, 3:] @ v["b"][:3])[:, :3]], -1)
  return jnp.concatenate([b[:, :3], b[:, 3:] @ v["c"][:3], jnp.zeros((len(x), 3))], -1) @ v["d"]


def shared(fn, rules="w8a8", variables=V):
  plan = quant.quantize(fn, quant.policy(rules, ends=None)).plan(variables, X)
  groups = {}
  for name, quantizer in plan.tensors.items():
    groups.setdefault(quantizer.key, []).append(name)
  return {key: (names, len(plan.observed[key])) for key, names in groups.items() if len(names) > 1}, plan


def test_what_is_joined_has_the_grid_of_the_join():
  found, plan = shared(skip)
  assert found == {"b:out": (["a:out", "b:out", "b:out#1"], 1)} and plan.parts == frozenset()
  assert shared(skip, "w8a8 ema(rate=0.1)")[0] == found
  assert shared(skip, {"d": "w8a6", "*": "w8a8"})[0] == {}  # what is rounded to other grids stays apart
  assert shared(skip, {"b": "w8a6", "*": "w8a8"})[0] == {}
  assert shared(skip, {"d": "float", "*": "w8a8"})[0] == {}
  assert shared(lambda v, x: jnp.concatenate([x, x @ v["a"]], -1) @ v["d"])[0].keys() == {"a:out"}  # not the input


def test_parts_that_nothing_holds_as_a_whole_are_all_seen():
  found, plan = shared(shuffled)
  ((key, (names, places)),) = found.items()
  assert set(names) >= {"a:out", "a:out#1", "b:out", "b:out#1"} and places > 1 and plan.parts == {key}
  assert shared(shuffled, "w8a8 ema(rate=0.1)")[0] == {}  # a moving average takes each batch once
  model = quant.quantize(shuffled, "w8a8")
  qparams, state = model.calibrate(V, [X, 2 * X])
  grids = model.grids(qparams, state, V, X)
  seen = [graph.taps(shuffled, names)(V, x)[1].values() for x in (X, 2 * X)]
  low, high = (
    f([f([np.asarray(one).min() if f is min else np.asarray(one).max() for one in v]) for v in seen])
    for f in (min, max)
  )
  for name in names:
    np.testing.assert_allclose(grids[name].scale, (high - low) / 255, rtol=1e-5)
  assert set(names) - {key} <= grids.keys() and not (set(names) - {key}) & state.keys()


OTHERS = {
  "a spread": (lambda v, x: jnp.repeat(x @ v["a"], 2, axis=1) @ v["d"], 1),
  "a sum": (lambda v, x: jnp.sin(x @ v["a"]) @ v["b"], 0),
  "a part of a function's result": (
    lambda v, x: (h := jnp.sin(x @ v["a"]))[:, :3] @ v["b"][:3] + h[:, 3:] @ v["c"][3:],
    0,
  ),
  "the largest of two": (lambda v, x: jnp.maximum(x @ v["a"], x @ v["b"]) @ v["c"], 1),
  "what a function reads": (lambda v, x: jnp.tanh(jnp.concatenate([x @ v["a"], x @ v["b"]], -1)) @ v["d"], 1),
  "what a norm reads": (lambda v, x: (jnp.concatenate([x @ v["a"], x @ v["b"]], -1) * v["d"][:, 0]) @ v["d"], 0),
  "what a softmax reads": (lambda v, x: jax.nn.softmax(jnp.concatenate([x @ v["a"], x @ v["b"]], -1)) @ v["d"], 1),
  "what a function reads, with the input": (lambda v, x: jnp.tanh(jnp.concatenate([x, x @ v["b"]], -1)) @ v["d"], 0),
  "what a function reads, of a function": (
    lambda v, x: jnp.tanh(jnp.concatenate([x @ v["a"], jnp.sin(x @ v["b"])], -1)) @ v["d"],
    0,
  ),
  "a limit": (lambda v, x: jnp.maximum(x @ v["a"], v["a"][0]) @ v["c"], 0),
  "a branch": (
    lambda v, x: jax.lax.cond(x.sum() > 0, lambda h: h[:, ::-1] @ v["b"], lambda h: h @ v["c"], x @ v["a"]),
    0,
  ),
  "a scan": (
    lambda v, x: jax.lax.scan(lambda h, w: (jnp.sin(jnp.roll(h @ w, 1, 1) @ v["b"]), None), x, jnp.stack([v["a"]] * 2))[
      0
    ],
    1,
  ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_each_rule(name):
  fn, count = OTHERS[name]
  assert len(shared(fn)[0]) == count


def test_a_learned_scale_of_a_join_gets_the_gradients_of_all_parts():
  model = quant.quantize(skip, quant.policy("w8a6 learned", ends=None))
  qparams, state = model.init(V, X)
  g = model.grids(qparams, state, V, X)
  assert "b:out" in qparams and not {"a:out", "b:out#1"} & qparams.keys()
  qparams = {**qparams, "b:out": qparams["b:out"] - 1.5}  # much is clipped

  def by_hand(log_scale):
    def values(name, x, scale=None):
      if name == "input":
        return quant.fake_quant(x, g[name])
      low, high = (float(v - np.asarray(g[name].zero_point).min()) for v in (g[name].qmin, g[name].qmax))
      count = x.size // (x.shape[-1] if g[name].narrow else len(x))
      scale = jnp.exp(qparams[name]) if scale is None else jnp.exp(scale)
      return lsq_values(x, scale, low, high, 1 / np.sqrt(count * high).astype(np.float32))

    a = values("a:out", jax.nn.relu(values("input", X) @ values("a", V["a"])), log_scale)
    b = values("b:out#1", jax.nn.relu(a @ values("b", V["b"])), log_scale)
    joined = values("b:out", jnp.concatenate([b, a], -1), log_scale)  # what is on the grid stays as it is
    return jnp.sum(values("d:out", joined @ values("d", V["d"])) ** 2)

  def simulated(log_scale):
    return jnp.sum(model.apply({**qparams, "b:out": log_scale}, state, V, X)[0] ** 2)

  (value, slope), (expected, wanted) = (jax.value_and_grad(f)(qparams["b:out"]) for f in (simulated, by_hand))
  np.testing.assert_allclose(value, expected, rtol=1e-4)
  np.testing.assert_allclose(slope, wanted, rtol=1e-3)
