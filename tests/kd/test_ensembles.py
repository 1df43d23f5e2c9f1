"""The members of an ensemble, and masks of its classes: checked as every other input of a loss is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import kd
from leanax.core.errors import UserError

RNG = np.random.default_rng(0)
STUDENT, MEMBERS = (RNG.normal(size=shape).astype(np.float32) for shape in ((4, 5), (4, 2, 5)))
LOSSES = {
  "hinton": kd.hinton(2.0),
  "nkd": kd.nkd(temperature=2.0),
  "mlkd": kd.mlkd((2.0,)),
  "logit_l2": kd.logit_l2(),
  "bernoulli_kl": kd.bernoulli_kl(2.0),
  "squared_error": kd.squared_error(),
  "ctkd": kd.ctkd(),
}


def number(name, members, class_mask=None, student=STUDENT):
  teacher = kd.Outputs(jnp.asarray(student), members=members)
  aux = {"temperature": jnp.ones(())} if name == "ctkd" else None
  batch = {"label": np.zeros(len(student), int)}
  return LOSSES[name](jnp.asarray(student), teacher, batch, aux=aux, class_mask=class_mask)[0]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mask", [np.ones((3, 5), bool), np.ones((4, 5)), np.ones(4, bool), {1, 2}, [[True], [1, 0]]])
def test_an_invalid_class_mask(name, mask):
  with pytest.raises(UserError, match=f"the loss '{name}' expects class_mask to be bools"):
    number(name, MEMBERS, mask)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("members", [[STUDENT, STUDENT], STUDENT, MEMBERS.astype(np.int32), (MEMBERS,)])
def test_invalid_members(name, members):
  with pytest.raises(UserError, match=f"the loss '{name}' reads an ensemble's members, .batch, members, .*; got"):
    number(name, members)


def test_a_list_is_a_class_mask():
  mask = [True, True, False, True, True]
  p = scipy.special.softmax(MEMBERS[..., mask].astype(np.float64) / 2, -1).mean(1)
  log_q = scipy.special.log_softmax(STUDENT[..., mask].astype(np.float64) / 2, -1)
  np.testing.assert_allclose(number("hinton", MEMBERS, mask), 4 * np.sum(p * (np.log(p) - log_q), -1), rtol=1e-5)


def test_the_mean_probability_of_one_class_is_refused():
  """It is always 1, and so the logarithm that `logit_l2` would read always 0, whatever the members' logits."""
  student, members = np.full((4, 1), 5, np.float32), np.array([[[4.0], [6.0]]] * 4, np.float32)
  with pytest.raises(UserError, match="'logit_l2' reads the mean probabilities .* of one class they are always 1; exp"):
    number("logit_l2", members, student=student)
  assert number("squared_error", members, student=student).tolist() == [0.0] * 4
  assert jax.grad(lambda s: number("bernoulli_kl", members, student=s).sum())(student).shape == (4, 1)
