"""Functions of a user's own as losses, and trained parts that were made for other taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32) for _ in range(2))
MAP = jnp.asarray(RNG.normal(size=(4, 5, 5, 3)), jnp.float32)
MASK = np.array([True, True, False, True])


def outputs(**taps):
  return kd.Outputs(jnp.zeros((4, 2)), taps)


def powered(student, teacher, power=2.0):
  return jnp.sum(jnp.abs(student - teacher) ** power, -1)


def test_an_argument_with_a_default_is_not_the_class_mask():
  gap = np.abs(np.float64(STUDENT) - np.float64(TEACHER))
  np.testing.assert_allclose(kd.loss(powered)(STUDENT, TEACHER)[0], (gap**2).sum(-1), rtol=1e-5)
  cubed = kd.loss(lambda s, t, *, power=3.0: powered(s, t, power), "cubed")
  np.testing.assert_allclose(cubed(STUDENT, TEACHER)[0], (gap**3).sum(-1), rtol=1e-5)
  with pytest.raises(UserError, match="'powered' does not support masked classes"):
    kd.loss(powered)(STUDENT, TEACHER, class_mask=MASK)
  known = kd.loss(
    lambda s, t, class_mask=None: jnp.sum(jnp.where(class_mask, jnp.abs(s - t), 0.0), -1), "known", reads=["class_mask"]
  )
  np.testing.assert_allclose(known(STUDENT, TEACHER, class_mask=MASK)[0], gap[:, MASK].sum(-1), rtol=1e-5)


@pytest.mark.parametrize(
  "f", [None, "hinton", lambda s: s, lambda s, t, m, n: s, lambda s, t, *, heat: s, lambda: 0, lambda *, labels: 0]
)
def test_functions_that_are_not_losses(f):
  with pytest.raises(UserError, match="the function of the loss 'own' is called as f.student_logits, teacher_logits"):
    kd.loss(f, "own")


@pytest.mark.parametrize("given", [0.0, None, [1.0, 2.0]])
def test_a_number_that_is_not_an_array(given):
  with pytest.raises(UserError, match="the loss 'own' gives .* for logits .3, 4.; expected one per example"):
    kd.loss(lambda s, t: given, "own")(STUDENT, TEACHER)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
  ("name", "keywords"),
  [("fitnet", {}), ("ab", {}), ("vid", {}), ("mgd", {}), ("ofd", {}), ("simkd", {}), ("srrl", {})],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_trained_parts_of_other_channels(name, keywords, channels):
  """One channel of the teacher would be compared with each of the student's."""
  loss, s, made = getattr(kd, name)("a", "a", **keywords), outputs(a=MAP), outputs(a=MAP)
  variables = {"params": {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}}
  aux, aux_state = loss.init(jax.random.key(0), s, made, variables)
  given = {"aux": aux, "aux_state": aux_state, "key": jax.random.key(1)}
  batch = {"id": jnp.arange(4, dtype=jnp.int32)}
  assert loss(s, made, batch, **given)[0].shape == (4,)
  with pytest.raises(UserError, match=f"{name}.* shape .*; expected .*the 'aux' that its init makes for these taps"):
    loss(s, outputs(a=MAP[..., :channels]), batch, **given)


@pytest.mark.parametrize("aux", [[], {}, {"kernel": 1}, 3, "two"])
def test_trained_parts_of_other_pairs(aux):
  loss, s = kd.fitnet("a", "a"), outputs(a=MAP)
  aux = loss.init(jax.random.key(0), s, s)[0] * 2 if aux == "two" else aux
  with pytest.raises(UserError, match="'fitnet' has parameters for each of its 1 pairs of taps; expected the 'aux'"):
    loss(s, s, aux=aux)
