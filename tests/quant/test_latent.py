import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from quant.grid import fake_quant
from quant.latent import _round_up, finalize, latent_weights, nearest, project
from quant.plan import kernel_axes
from quant.policy import policy
from quant.quantize import quantize
from quant.spec import parse
from tests.numbers import array


def params_of(seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: array(rng.normal(size=shape), jnp.float32)
  return {"a": {"kernel": draw(9, 7), "bias": draw(7)}, "b": {"kernel": draw(3, 3, 2, 5)}}


def run(tx, params, steps, seed=1, **extra):
  rng = np.random.default_rng(seed)
  state = tx.init(params)

  @jax.jit
  def step(params, state, grads):
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an int
      updates, state = tx.update(grads, state, params, **extra)
    return optax.apply_updates(params, updates), state

  for _ in range(steps):
    grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    params, state = step(params, state, grads)
    yield params, state


@pytest.mark.sampled(3)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_parameters_are_the_quantized_latents_bit_for_bit(bits):
  tx = latent_weights(optax.adam(0.02), f"w{bits}")
  compiled = jax.jit(lambda params, state: finalize(params, state, f"w{bits}"))
  for params, state in run(tx, project(params_of(), f"w{bits}"), 100):
    jax.tree.map(np.testing.assert_array_equal, params, compiled(params, state))
    assert sorted(state.latents) == ["a/kernel", "b/kernel"]
  jax.tree.map(np.testing.assert_array_equal, params, finalize(params, state, f"w{bits}"))
  kernel = np.asarray(params["a"]["kernel"])
  assert all(len(np.unique(kernel[:, c])) <= 2**bits - 1 for c in range(7))
  assert np.any(kernel != np.asarray(state.latents["a/kernel"]))


def test_the_latents_are_what_the_inner_optimizer_alone_would_give():
  """The gradients do not depend on the parameters here, so latents and a plain run see the same ones."""
  params = project(params_of(), "w4")
  for (_, state), (plain, _) in zip(
    run(latent_weights(optax.adamw(0.01), "w4"), params, 5), run(optax.adamw(0.01), params, 5)
  ):
    plain = named_leaves(plain)
    for name, latent in state.latents.items():
      np.testing.assert_array_equal(latent, plain[name])


def test_leaves_without_a_rule_are_trained_as_usual():
  rules = [("b/*", "w4")]
  params = project(params_of(), rules)
  for (quantized, state), (plain, _) in zip(
    run(latent_weights(optax.sgd(0.1), rules), params, 3), run(optax.sgd(0.1), params, 3)
  ):
    assert list(state.latents) == ["b/kernel"]
    jax.tree.map(np.testing.assert_array_equal, quantized["a"], plain["a"])


def test_small_steps_add_up_in_the_latents():
  """A hundred steps, each far below half a grid step, move a code in the end: the reason for latents."""
  params = project({"kernel": jnp.asarray([[1.0, 1.0], [0.0, 0.0]])}, "w4")
  tx = latent_weights(optax.sgd(1.0), "w4")
  state = tx.init(params)
  grads = {"kernel": jnp.asarray([[0.0, 0.0], [-0.001, 0.0]])}

  @jax.jit
  def step(params, state):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(100):
    params, state = step(params, state)
  assert float(params["kernel"][1, 0]) > 0 and float(params["kernel"][1, 1]) == 0


def test_pruned_latents_stay_exactly_zero():
  def prune(updates, state, params):
    return jax.tree.map(
      lambda u, p: jnp.where(jnp.arange(p.size).reshape(p.shape) % 3 == 0, -p, u), updates, params
    ), state

  inner = optax.chain(optax.adam(0.01), optax.GradientTransformation(lambda p: optax.EmptyState(), prune))
  for params, _ in run(latent_weights(inner, "w4"), project(params_of(), "w4"), 5):
    for leaf in (params["a"]["kernel"], params["b"]["kernel"]):
      assert not np.any(np.asarray(leaf).reshape(-1)[::3])


def test_extra_arguments_reach_the_inner_optimizer():
  def update(updates, state, params=None, *, step, **extra):
    del params, extra
    return jax.tree.map(lambda g: -g * step, updates), state

  inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
  tx = latent_weights(inner, "w8")
  params = project(params_of(), "w8")
  zero = jax.tree.map(jnp.ones_like, params)
  _, state = tx.update(zero, tx.init(params), params, step=jnp.float32(0), value=1.0)
  np.testing.assert_array_equal(state.latents["a/kernel"], params["a"]["kernel"])


def test_under_multi_steps_and_apply_if_finite():
  inner = latent_weights(optax.sgd(0.1), "w4")
  tx = optax.apply_if_finite(optax.MultiSteps(inner, 2).gradient_transformation(), 3)
  compiled = jax.jit(lambda params, state: finalize(params, state, "w4"))
  for params, state in run(tx, project(params_of(), "w4"), 6):
    latent_state = state.inner_state.inner_opt_state
    jax.tree.map(np.testing.assert_array_equal, params, compiled(params, latent_state))


def test_scales_are_rounded_up():
  x = jnp.asarray(np.random.default_rng(0).random(1000) + 1e-3, jnp.float32)
  for bits in (2, 8):
    rounded = np.asarray(_round_up(x, bits + 3))
    assert np.all(rounded >= x) and np.all(rounded <= x * (1 + 2.0 ** -(24 - bits - 4)))
    mantissa = np.frexp(rounded.astype(np.float64))[0] * 2 ** (24 - bits - 3)
    np.testing.assert_array_equal(mantissa, np.round(mantissa))
  exact = nearest(jnp.asarray([[1.0], [-3.5], [7.0]]), parse("w4").weights)
  np.testing.assert_array_equal(exact, [[1.0], [-4.0], [7.0]])  # half to even


@pytest.mark.parametrize("spec", ["w2", "w3 full", "w4 per_tensor", "w8"])
def test_projecting_twice_is_projecting_once(spec):
  compiled = jax.jit(lambda params: project(params, spec))
  for seed in range(20):
    once = compiled(params_of(seed))
    jax.tree.map(np.testing.assert_array_equal, compiled(once), once)


def test_mistakes_are_named():
  params = params_of()
  with pytest.raises(UserError, match="ends=None"):
    latent_weights(optax.sgd(0.1), policy("w4"))
  with pytest.raises(UserError, match="expected weights of 2 to 8 bits"):
    latent_weights(optax.sgd(0.1), "w16")
  with pytest.raises(UserError, match="expected weights of 2 to 8 bits"):
    latent_weights(optax.sgd(0.1), "w4a8")
  with pytest.raises(UserError, match="matches nothing"):
    latent_weights(optax.sgd(0.1), {"c/*": "w4"}).init(params)
  with pytest.raises(UserError, match="expected float32"):
    latent_weights(optax.sgd(0.1), "w4").init(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
  tx = latent_weights(optax.sgd(0.1), "w4")
  with pytest.raises(UserError, match="needs the parameters"):
    tx.update(params, tx.init(params))


def turned(v, x):
  h = jax.nn.relu(x @ v["a"][0] @ v["a"][1])
  return (h @ v["b"].T) @ v["c"].reshape(4, 5)


def test_with_axes_of_the_traced_sites_it_agrees_with_quantize():
  draw = lambda *shape: array(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)
  params = {"a": draw(2, 6, 6), "b": draw(4, 6), "c": draw(20), "table": draw(3, 3)}
  params["b"] *= jnp.geomspace(0.01, 10, 4)[:, None]
  x = draw(5, 6)
  axes = kernel_axes(graph.trace(turned, params, x), "w4")
  once = jax.jit(lambda p: project(p, "w4", axes))(params)
  by_hand = {"a": ((2, 6, 6), 1), "b": ((4, 6), 1), "c": ((4, 5), 0)}
  for name, (shape, summed) in by_hand.items():
    w = np.asarray(params[name], np.float64).reshape(shape)
    s = np.abs(w).max(summed, keepdims=True) / 7
    expected = (np.round(w / s) * s).reshape(params[name].shape)
    np.testing.assert_allclose(once[name], expected, rtol=2.0**-15)  # scales have 17 bits
  np.testing.assert_array_equal(once["table"], params["table"])  # no site multiplies by it
  model = quantize(turned, policy("w4", ends=None))
  qparams, state = model.init(params, x)
  rounded = jax.jit(lambda *given: {n: fake_quant(params[n], grid) for n, grid in model.grids(*given).items()})(
    qparams, state, params, x
  )
  for name, values in rounded.items():
    np.testing.assert_allclose(values, once[name], rtol=2.0**-15)
  tx = latent_weights(optax.sgd(0.1), "w4", axes)
  for start in (once, {"params": once}):
    compiled = jax.jit(lambda params, state: finalize(params, state, "w4", axes))
    for moved, latent in run(tx, start, 3):
      jax.tree.map(np.testing.assert_array_equal, moved, compiled(moved, latent))


def test_axes_of_another_policy_or_model_are_refused():
  params = {"w": jnp.ones((6, 6))}
  axes = kernel_axes(graph.trace(lambda v, x: x @ v["w"], params, jnp.ones((2, 6))), "w4")
  with pytest.raises(UserError, match="axes has 'w' as w4, which no rule of this policy says"):
    latent_weights(optax.sgd(0.1), "w2", axes)
  with pytest.raises(UserError, match="unknown parameter in the axes of latent_weights: 'w'"):
    project({"u": jnp.ones((6, 6))}, "w4", axes)
  with pytest.raises(UserError, match=r"'w' has the shape \(6, 5\), but axes are for \(6, 6\)"):
    project({"w": jnp.ones((6, 5))}, "w4", axes)


@pytest.mark.parametrize("shape", [(6, 5), (2, 2, 6, 5)])
def test_groups_have_the_scales_of_quantize_however_small_they_are(shape):
  conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  fn = lambda params, x: (jnp.matmul if len(shape) == 2 else conv)(x, params["w"])
  w = np.random.default_rng(0).normal(size=shape) * np.repeat([1e-6, 1.0, 1e3], 2)[:, None]
  params, x = {"w": jnp.asarray(w, jnp.float32)}, np.ones((2, *(3,) * (len(shape) - 2), 6), np.float32)
  axes = kernel_axes(graph.trace(fn, params, x), "w4g2")
  parts = np.asarray(params["w"], np.float64).reshape(*shape[:-2], 3, 2, 5)
  scale = (
    np.abs(parts).max(tuple(i for i in range(parts.ndim) if i not in (parts.ndim - 3, parts.ndim - 1)), keepdims=True)
    / 7
  )
  expected = (np.round(parts / scale) * scale).reshape(shape)
  np.testing.assert_allclose(jax.jit(lambda p: project(p, "w4g2", axes))(params)["w"], expected, rtol=2.0**-15)
