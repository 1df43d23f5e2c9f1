"""Invalid losses, objectives and models of a step: one sentence where they are made, or first read."""

import jax.numpy as jnp
import optax
import pytest

import kd
from leanax import engine
from leanax.core.errors import UserError
from leanax.engine.train.forward import plain


def linear(variables, x, *, train, key):
  return x @ variables["params"]["kernel"], {}


@pytest.mark.parametrize("loss", [lambda s, t: jnp.sum(s - t, -1), jnp.square, optax.softmax_cross_entropy])
def test_a_plain_function_is_made_a_loss_first(loss):
  with pytest.raises(UserError, match="the loss of term 'own' .*expected a call, such as kd.hinton.., or .*kd.loss"):
    kd.weighted([kd.Term("own", loss)])
  assert kd.weighted([kd.Term("own", kd.loss(lambda s, t: jnp.sum(s - t, -1), "own"))])


@pytest.mark.parametrize("terms", [None, 3, "hinton", {"a": 1}])
def test_invalid_terms(terms):
  with pytest.raises(UserError, match="an objective takes a list of kd.Term.name, loss.; got"):
    kd.weighted(terms)


@pytest.mark.parametrize("loss", [kd.hard_labels(), kd.sp("a", "a"), kd.Term("a", kd.hard_labels()), kd.hinton])
def test_a_loss_is_not_an_objective(loss):
  with pytest.raises(UserError, match="the objective of engine.training is .*; expected one of terms, as kd.w"):
    engine.training(plain(linear), loss, optax.sgd(1.0))


@pytest.mark.parametrize("given", [jnp.ones((2, 3)), (jnp.ones((2, 3)),), {"logits": jnp.ones((2, 3))}])
def test_a_model_that_gives_logits_alone(given):
  objective = kd.weighted([kd.Term("hard", kd.hard_labels())])
  init, step = engine.training(plain(lambda variables, x, *, train, key: given), objective, optax.sgd(1.0))
  state = init({"params": {"kernel": jnp.ones((3, 3))}})
  with pytest.raises(UserError, match="the model's apply gives .*; expected a pair, its logits and its other"):
    step(state, {"image": jnp.ones((2, 3)), "label": jnp.zeros(2, jnp.int32)})
