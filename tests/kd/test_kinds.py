"""The one form of every loss: what is declared, what is refused, and the objective that adds losses up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import kd
from leanax.core.errors import UserError

S, T = jnp.asarray([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]]), jnp.asarray([[0.0, 1.0, 1.0], [2.0, 0.0, 1.0]])
BATCH = {"label": jnp.asarray([2, 0])}


def test_a_function_gets_the_arguments_that_it_reads():
  """Rows, a mask over them, the step, labels that are checked, and any float of the batch as rows."""
  seen = {}

  def f(student, teacher, *, label, class_mask, valid, step, axis_name, weight):
    seen.update(label=label.index, class_mask=class_mask, valid=valid, step=step, axis_name=axis_name, weight=weight)
    return jnp.sum(student - teacher, -1)

  reads = ("label", "class_mask", "valid", "step", "axis_name", "weight")
  loss = kd.loss(f, reads=reads)
  assert (loss.name, loss.needs_teacher, loss.relational, loss.reads) == ("f", True, False, ("logits", *reads))
  batch = {**BATCH, "weight": 2 * S, "valid": jnp.asarray([True, False])}
  out = loss(S, T, batch, class_mask=jnp.asarray([True, False, True]), step=7, aux_state={"kept": 1})
  np.testing.assert_array_equal(out.per_example, [1.0, 0.0])
  assert out.state == {"kept": 1} and out.logs == {} and seen["step"] == 7 and seen["axis_name"] is None
  np.testing.assert_array_equal(seen["label"], [2, 0])
  np.testing.assert_array_equal(seen["valid"], [True, False])
  np.testing.assert_array_equal(seen["weight"], [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
  ("f", "reads"),
  [
    (lambda student, teacher: student, ("label",)),
    (lambda student, teacher, label: student, ()),
    (lambda student: student, ()),
  ],
)
def test_a_function_that_takes_other_arguments_is_refused_where_the_loss_is_made(f, reads):
  with pytest.raises(UserError, match=r"function of the loss 'own' is called as f\(student_logits, teacher_logits.*: "):
    kd.loss(f, "own", reads=reads)


def test_one_name_may_be_given_as_text():
  assert kd.loss(lambda s, t, step: s[:, 0], reads="step").reads == ("logits", "step")


def test_missing_keys_of_the_batch_are_named():
  loss = kd.loss(lambda s, t, weight: s[:, 0] * weight[:, 0], "own", reads=("weight",))
  with pytest.raises(UserError, match=r"the loss 'own' needs a batch with 'weight', floats \(2, 3\)"):
    loss(S, T, BATCH)
  with pytest.raises(UserError, match="'own' does not support masked classes: it does not read 'class_mask'"):
    loss(S, T, {"weight": S}, class_mask=jnp.ones(3, bool))


def test_a_loss_returns_its_own_form():
  for wrong, kind in ((lambda s, t, context: s.logits[:, 0], "ArrayImpl"), (lambda s, t, context: (0, 0, {}), "tuple")):
    with pytest.raises(UserError, match=rf"the loss 'own' returns a {kind}; expected kd.LossOut\(per_example, state"):
      kd.Loss("own", wrong)(S, T)


@pytest.mark.parametrize(
  ("given", "key"),
  [
    ({"taps": kd.Taps("a")}, "taps.student is 'a'"),
    ({"taps": kd.Taps(("a",), (3,))}, r"taps.teacher is \(3,\)"),
    ({"reads": "label"}, "reads is 'label'"),
    ({"reads": ["label"]}, r"reads is \['label'\]"),
  ],
)
def test_declared_names_are_tuples_of_names(given, key):
  with pytest.raises(UserError, match=f"the loss 'own': {key}; expected names in a tuple, such as "):
    kd.Loss("own", lambda s, t, context: kd.LossOut(s.logits[:, 0]), **given)


def test_a_loss_that_remembers():
  """State and logs as they are given; None leaves what was given."""
  count = kd.Loss("count", lambda s, t, c: kd.LossOut(s.logits[:, 0], c.aux_state + 1, {"size": s.logits[:, 1]}))
  out = count(S, T, aux_state=jnp.asarray(3))
  assert int(out.state) == 4
  np.testing.assert_array_equal(out.logs["size"], S[:, 1])
  assert kd.hinton()(S, T).state is None


def test_a_loss_is_data():
  """A copy with other taps checks those; what it declares compares and prints."""
  loss = kd.fitnet("a", "a")
  other = dataclasses.replace(loss, taps=kd.Taps(("b",), ("b",), loss.taps.shapes))
  outputs = kd.Outputs(S, {"b": S})
  assert other.init is not None and loss.init is not None
  with pytest.raises(UserError, match="'fitnet' reads 'a' of the student, whose outputs have no such tap"):
    loss.init(jax.random.key(0), outputs, outputs)
  with pytest.raises(KeyError):  # its function still reads "a"
    other.init(jax.random.key(0), outputs, outputs)
  with pytest.raises(dataclasses.FrozenInstanceError):
    setattr(loss, "needs_teacher", False)  # noqa: B010
  assert kd.hinton().init is None


def test_an_objective_in_a_plain_loop():
  """Logits as they are, and no more than that: the value is numpy's, and its gradient moves the student."""
  objective = kd.weighted([kd.Term("hard", kd.hard_labels(), 0.25), kd.Term("soft", kd.hinton(2.0), lambda step: 0.5)])
  loss, state, logs = objective(S, T, BATCH)
  log_q = lambda x, t=1.0: scipy.special.log_softmax(np.float64(x) / t, -1)
  hard = -log_q(S)[np.arange(2), [2, 0]].mean()
  soft = 4 * (np.exp(log_q(T, 2)) * (log_q(T, 2) - log_q(S, 2))).sum(-1).mean()
  np.testing.assert_allclose([logs["hard"], logs["soft"], loss], [hard, soft, 0.25 * hard + 0.5 * soft], rtol=1e-6)
  assert state == {} and objective.relational == () and objective.student == ()
  gradient = jax.grad(lambda s: objective(s, T, BATCH)[0])(S)
  assert objective(S - gradient, T, BATCH)[0] < loss


@pytest.mark.parametrize(
  ("loss", "named"),
  [(kd.hinton, "hinton"), ("hinton", "'hinton'"), (lambda s, t, batch, **_: s, "<lambda>"), (None, "None")],
)
def test_a_term_has_a_loss(loss, named):
  with pytest.raises(UserError, match=f"the loss of term 'soft' is {named}, not a loss; expected a call, such as"):
    kd.weighted([kd.Term("soft", loss)])
