"""DOT against the paper's two buffers in float64, SGD at delta 0, and a case by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd
from leanax.core.errors import UserError
from leanax.core.methods import methods
from tests.numbers import array


def tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: array(scale * rng.normal(size=shape), jnp.float32)
  return {"kernel": draw(3, 2), "bias": draw(2)}


def run(tx, steps=5, **kwargs):
  """Parameters after some steps; the tasks' gradients are other numbers than the wholes'."""
  params = tree(0)
  state, update = tx.init(params), jax.jit(tx.update)
  for i in range(steps):
    more = {"task": tree(100 + i)} if kwargs.get("split") else {}
    updates, state = update(tree(10 + i), state, params, **more)
    params = optax.apply_updates(params, updates)
  return params, state


def oracle(lr, momentum, delta, decay, nesterov, steps=5):
  """Algorithm 1 with both buffers as they stand there."""
  as64 = lambda given: {name: np.float64(leaf) for name, leaf in given.items()}
  params = as64(tree(0))
  zero = {name: np.zeros_like(leaf) for name, leaf in params.items()}
  task, distillation = dict(zero), dict(zero)
  for i in range(steps):
    whole, own = as64(tree(10 + i)), as64(tree(100 + i))
    for name, w in params.items():
      g, h = own[name] + decay * w, whole[name] - own[name]
      task[name] = (momentum - delta) * task[name] + g
      distillation[name] = (momentum + delta) * distillation[name] + h
      move = task[name] + distillation[name]
      if nesterov:
        move = g + (momentum - delta) * task[name] + h + (momentum + delta) * distillation[name]
      params[name] = w - lr * move
  return params


@pytest.mark.parametrize("nesterov", [False, True])
def test_it_is_the_papers_two_buffers(nesterov):
  given = (0.1, 0.9, 0.075, 0.02, nesterov)
  got, _ = run(kd.dot(*given), split=True)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, oracle(*given))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_without_a_difference_it_is_sgd_bit_for_bit(nesterov, decay):
  got, _ = run(kd.dot(0.1, 0.9, 0.0, decay, nesterov), split=True)
  add = [optax.add_decayed_weights(decay)] if decay else []
  expected, _ = run(optax.chain(*add, optax.sgd(0.1, 0.9, nesterov)))
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_by_hand():
  """One weight, momenta 0.25 and 0.75, a task's gradient of 1 and a teacher's of 2 at every step."""
  tx = kd.dot(1.0, momentum=0.5, delta=0.25)
  w, moves = jnp.zeros(()), []
  state = tx.init(w)
  for _ in range(3):
    updates, state = tx.update(jnp.float32(3.0), state, w, task=jnp.float32(1.0))
    moves.append(float(updates))
  # task: 1, 1.25, 1.3125; distillation: 2, 3.5, 4.625
  np.testing.assert_allclose(moves, [-3.0, -4.75, -5.9375], rtol=1e-6)
  np.testing.assert_allclose([state[0].whole, state[0].task], [5.9375, 1.3125], rtol=1e-6)


def test_leaves_that_one_loss_reaches_have_the_mean_momentum():
  tx = kd.dot(0.1, both=lambda params: {"kernel": True, "bias": False})
  got, state = run(tx, split=True)
  sgd, _ = run(optax.sgd(0.1, 0.9))
  np.testing.assert_array_equal(got["bias"], sgd["bias"])
  assert np.any(got["kernel"] != sgd["kernel"])
  assert jax.tree.structure(state[0].whole) == jax.tree.structure(state[0].task) == jax.tree.structure(tree(0))


def test_only_states_of_dot_want_the_task():
  params = tree(0)
  inside = optax.chain(optax.clip_by_global_norm(1.0), kd.dot(0.1))
  assert kd.wants_task(inside.init(params)) and kd.wants_task(jax.eval_shape(inside.init, params))
  assert not kd.wants_task(optax.sgd(0.1, 0.9).init(params)) and not kd.wants_task(())


def test_mistakes_are_named():
  with pytest.raises(UserError, match="momentum is 0.9 and delta 0.1"):
    kd.dot(0.1, delta=0.1)
  with pytest.raises(UserError, match="momentum is 0.05 and delta 0.075"):
    kd.dot(0.1, momentum=0.05)
  tx = kd.dot(0.1)
  with pytest.raises(UserError, match="dot needs task="):
    tx.update(tree(1), tx.init(tree(0)), tree(0))


def test_a_config_does_not_take_it_for_a_loss():
  assert "dot" not in methods(kd, "losses") and "trainers" not in methods(kd, "losses")
