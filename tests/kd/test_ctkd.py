"""Curriculum temperature against Hinton's loss at the learned temperature, its reversed gradient and curriculum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import kd
from leanax.core.errors import UserError
from tests.kd.nets import check_logits, logits

SHAPE = kd.Outputs(jax.ShapeDtypeStruct((6, 5), jnp.float32))


def begin(loss):
  return loss.init(jax.random.key(0), SHAPE, SHAPE, None)[0]


def oracle(s, t, g=1.0, low=1.0, span=20.0):
  temperature = low + span / (1 + np.exp(-g))
  q, p = (scipy.special.softmax(x / temperature, -1) for x in (s, t))
  return temperature**2 * scipy.special.rel_entr(p, q).sum(-1)


@pytest.mark.parametrize("settings", [{}, {"low": 2.0, "span": 3.0}])
@pytest.mark.parametrize("g", [1.0, -0.5])
def test_value_and_gradient_are_hintons_at_the_learned_temperature(settings, g):
  aux = {"temperature": jnp.float32(g)}
  check_logits(kd.ctkd(**settings), lambda s, t: oracle(s, t, g, **settings), logits(0), logits(1), aux=aux, step=99)


def test_by_hand():
  loss = kd.ctkd(low=1.0, span=2.0)
  _, _, logs = loss(jnp.zeros((2, 3)), jnp.ones((2, 3)), aux={"temperature": jnp.zeros(())})
  np.testing.assert_allclose(logs["temperature"], [2.0, 2.0])  # 1 + 2 * sigmoid(0)
  np.testing.assert_allclose(begin(loss)["temperature"], 1.0)


@pytest.mark.parametrize(("step", "strength"), [(0, 0.0), (25, 0.5 - 0.125**0.5), (50, 0.5), (100, 1.0), (900, 1.0)])
@pytest.mark.parametrize("largest", [1.0, 3.0])
def test_the_temperature_gets_the_reversed_gradient_along_half_a_cosine(step, strength, largest):
  s, t = logits(0), logits(1)
  loss = kd.ctkd(steps=100, largest=largest)
  with jax.enable_x64(True):
    s64, t64 = jnp.asarray(s), jnp.asarray(t)
    aux = {"temperature": jnp.float64(1.0)}
    slope = jax.grad(lambda aux: loss(s64, t64, aux=aux, step=step)[0].sum())(aux)["temperature"]
  h = 1e-5
  forward = (oracle(s, t, 1 + h).sum() - oracle(s, t, 1 - h).sum()) / (2 * h)
  np.testing.assert_allclose(slope, -largest * strength * forward, rtol=1e-7, atol=1e-12)


def test_training_moves_the_temperature_to_where_the_loss_is_larger():
  s, t = jnp.float32(logits(0)), jnp.float32(logits(1))
  loss = kd.ctkd(steps=1)
  aux = begin(loss)
  first = loss(s, t, aux=aux, step=1)[0].mean()
  tx = optax.sgd(1.0)
  state = tx.init(aux)
  for _ in range(5):
    updates, state = tx.update(jax.grad(lambda aux: loss(s, t, aux=aux, step=1)[0].mean())(aux), state)
    aux = optax.apply_updates(aux, updates)
  assert loss(s, t, aux=aux, step=1)[0].mean() > first


def test_the_students_gradient_is_not_reversed():
  s, t = jnp.float32(logits(0)), jnp.float32(logits(1))
  loss = kd.ctkd(steps=10, low=1.0, span=6.0)
  gradients = [
    jax.grad(lambda s, step=step: loss(s, t, aux={"temperature": jnp.zeros(())}, step=step)[0].sum())(s)
    for step in (0, 10)
  ]
  np.testing.assert_array_equal(*gradients)
  np.testing.assert_allclose(gradients[0], jax.grad(lambda s: kd.hinton(4.0)(s, t)[0].sum())(s), rtol=1e-5, atol=1e-7)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="ctkd: steps is 0; expected a whole number, 1 or more"):
    kd.ctkd(steps=0)
  with pytest.raises(UserError, match="ctkd: largest is -1; expected a number, 0 or more"):
    kd.ctkd(largest=-1)
  with pytest.raises(UserError, match="compares logits of one shape"):
    kd.ctkd()(jnp.zeros((2, 3)), jnp.zeros((2, 4)), aux={"temperature": jnp.zeros(())})
  with pytest.raises(UserError, match="call its init"):
    kd.ctkd()(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
