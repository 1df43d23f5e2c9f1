"""Stacked layers: scanned or unrolled they have the same grids, and learned scales the gradients of leaves apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax import graph
from tests.numbers import array
from tests.quant.test_leaf_grids import restored

LAYERS, WIDTH = 3, 5


def data(shape, seed=0):
  return array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


STACK = data((LAYERS, WIDTH, WIDTH), 1) * jnp.asarray([1.0, 0.05, 8.0])[:, None, None]
SHARED = data((WIDTH, WIDTH), 2)
X = data((7, WIDTH), 9)


def scanned(v, x):
  return jax.lax.scan(lambda h, w: (jnp.tanh(jnp.tanh(h @ w) @ v["s"]), None), x, v["w"])[0]


def unrolled(v, x):
  for i in range(LAYERS):
    x = jnp.tanh(jnp.tanh(x @ v["w"][i]) @ v["s"])
  return x


def nested(v, x):
  """Two scans, of a leaf reshaped between them, and a leaf that neither slices."""

  def outer(h, w):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w @ v["s"]), None), h, w)

  return jax.lax.scan(outer, x, v["w"].reshape(3, 2, 4, 4))[0]


def start(fn, variables, x, spec):
  model = quant.quantize(fn, quant.policy(spec, ends=None))
  return model, *model.init(variables, x)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("spec", ["w4", "w4 per_tensor", "w4 learned", "w4 learned per_tensor start=range"])
def test_scanned_and_unrolled_layers_have_the_same_grids_outputs_and_gradients(spec):
  variables, found = {"w": STACK, "s": SHARED}, []
  for fn in (scanned, unrolled):
    model, qparams, state = start(fn, variables, X, spec)
    grids = model.grids(qparams, state, variables, X)
    loss = lambda q, v, m=model, s=state: jnp.sum(m.apply(q, s, v, X)[0] ** 2)
    out = jax.jit(model.apply)(qparams, state, variables, X)[0]
    found.append((state, out, jax.jit(jax.grad(loss, (0, 1)))(qparams, variables)))
    kept = ((0,), ()) if "per_tensor" in spec else ((0, 2), (1,))
    assert {n: g.scale.shape for n, g in grids.items()} == {
      "w": tuple(STACK.shape[i] for i in kept[0]),
      "s": tuple(SHARED.shape[i] for i in kept[1]),
    }
    for name, axes in zip("ws", kept, strict=True):
      decoded, used = restored(variables[name], grids[name])
      np.testing.assert_array_equal(decoded, used)
      if "learned" not in spec:
        w = np.asarray(variables[name], np.float64)
        s = np.abs(w).max(tuple(i for i in range(w.ndim) if i not in axes), keepdims=True) / 7
        np.testing.assert_allclose(used, np.round(w / s) * s, rtol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


def test_learned_scales_of_slices_have_the_gradients_of_leaves_apart():
  def one(v, x):
    a, b = v["w"]
    return jnp.tanh(x @ a) @ b @ jnp.split(v["u"], 2, axis=1)[1]

  def apart(v, x):
    return jnp.tanh(x @ v["a"]) @ v["b"] @ v["c"]

  a, b, c = (data((WIDTH, WIDTH), i) * 3.0**i for i in range(3))
  joint, split = {"w": jnp.stack([a, b]), "u": jnp.concatenate([a, c], 1)}, {"a": a, "b": b, "c": c}
  grads, params = [], []
  for fn, variables in ((one, joint), (apart, split)):
    model, qparams, state = start(fn, variables, X, "w3 learned")
    loss = lambda q, v, m=model, s=state: jnp.sum(m.apply(q, s, v, X)[0] ** 2)
    params.append(qparams)
    grads.append(jax.jit(jax.grad(loss))(qparams, variables))
  for tree in (params, grads):
    np.testing.assert_allclose(tree[0]["w"], jnp.stack([tree[1]["a"], tree[1]["b"]]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tree[0]["u"][WIDTH:], tree[1]["c"], rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(grads[0]["u"][:WIDTH], np.zeros(WIDTH))  # nothing reads them


def test_scans_in_scans_and_leaves_that_they_do_not_slice():
  variables, x = {"w": data((6, 16), 1) * jnp.geomspace(0.05, 0.5, 6)[:, None], "s": data((4, 4), 2)}, data((7, 4), 9)
  model, qparams, state = start(nested, variables, x, "w4 learned start=range")
  grids = model.grids(qparams, state, variables, x)
  assert (grids["w"].scale.shape, grids["w"].shape, grids["w"].axis) == ((6, 4), (6, 4, 4), (0, 2))
  assert grids["s"].scale.shape == qparams["s"].shape == (4,)
  w, s = (np.asarray(variables[n], np.float64) for n in "ws")
  w = w.reshape(6, 4, 4)
  w, s = (np.round(v / (t := np.abs(v).max(-2, keepdims=True) / 7)) * t for v in (w, s))
  h = np.asarray(x, np.float64)
  for layer in w:
    h = np.tanh(h @ layer @ s)
  np.testing.assert_allclose(jax.jit(model.apply)(qparams, state, variables, x)[0], h, rtol=1e-4, atol=1e-5)
  grads = jax.jit(jax.grad(lambda q: jnp.sum(model.apply(q, state, variables, x)[0])))(qparams)
  assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in grads.values())


def test_a_stack_read_inside_and_outside_of_a_scan_has_one_grid():
  fn = lambda v, x: scanned(v, x) @ v["w"][1]
  variables = {"w": STACK, "s": SHARED}
  model, qparams, state = start(fn, variables, X, "w4")
  assert sorted(state) == ["s", "w"]
  rounded = {n: restored(variables[n], g)[1] for n, g in model.grids(qparams, state, variables, X).items()}
  found = jax.jit(model.apply)(qparams, state, variables, X)[0]
  np.testing.assert_allclose(found, jax.jit(fn)(rounded, X), rtol=1e-4, atol=1e-5)


def numbered(v, x):
  def step(h, i):
    return jnp.tanh(h @ jax.lax.dynamic_index_in_dim(v["w"], i, keepdims=False)), None

  return jax.lax.scan(step, x, jnp.arange(LAYERS))[0]


def counted(v, x):
  return jax.lax.fori_loop(0, LAYERS, lambda i, h: jnp.tanh(h @ v["w"][i]), x)


def counted_in_turn(v, x):
  """Two counters that change places, which reach each other and no data."""

  def step(carry, _):
    h, i, j = carry
    return (jnp.tanh(h @ v["w"][i]), j, i + 2), None

  return jax.lax.scan(step, (x, 0, 1), None, LAYERS)[0][0]


def test_a_layer_that_the_data_choose_is_not_a_kernel():
  def fn(v, x):
    def step(carry, _):
      h, i, before = carry
      return (jnp.tanh(h @ v["w"][i]), before, jnp.argmax(h[0, :LAYERS])), None

    return jax.lax.scan(step, (x, 0, 0), None, LAYERS)[0][0]

  assert [op.kind for op in graph.trace(fn, {"w": STACK}, X).sites.values()] == ["dot", "output"]
  assert "w" not in graph.trace(fn, {"w": STACK}, X).sites


@pytest.mark.parametrize("fn", [numbered, counted, counted_in_turn])
def test_a_layer_found_by_the_number_of_the_iteration_has_its_grid_in_the_operands_axes(fn):
  variables = {"w": STACK}
  model, qparams, state = start(fn, variables, X, "w4 learned start=range")
  grid = model.grids(qparams, state, variables, X)["w"]
  rounded = restored(STACK, grid)[1]  # in this order, and so in the leaf's axes too
  s = np.abs(np.asarray(STACK, np.float64)).max(1, keepdims=True) / 7
  np.testing.assert_allclose(rounded, np.round(STACK / s) * s, rtol=2e-6)
  found = jax.jit(model.apply)(qparams, state, variables, X)[0]
  np.testing.assert_allclose(found, jax.jit(fn)({"w": rounded}, X), rtol=1e-4, atol=1e-5)
