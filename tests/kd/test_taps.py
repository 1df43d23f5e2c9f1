"""Losses on activations of networks that give several outputs: by `graph.taps`, and in an objective."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import kd
from leanax import graph
from leanax.core.errors import UserError


class Found(NamedTuple):
  boxes: jax.Array
  classes: jax.Array


class Detector(nn.Module):
  """Two heads on one body."""

  width: int
  form: str

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(self.width)(x))
    boxes, classes = nn.Dense(4)(x), nn.Dense(3)(x)
    return {
      "dict": {"boxes": boxes, "classes": classes},
      "tuple": (boxes, classes),
      "named": Found(boxes, classes),
      "none": {"boxes": boxes, "nothing": None},
    }[self.form]


TAP = "Dense_0/kernel:out"
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)


def outputs(width, form, taps=(TAP,)):
  net = Detector(width, form)
  read = graph.taps(net.apply, taps)
  variables = jax.jit(net.init)(jax.random.key(width), X)
  return variables, lambda variables: kd.Outputs(*read(variables, X))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("form", ["dict", "tuple", "named", "none"])
def test_a_pair_of_activations(form):
  """The number, and a gradient that reaches the body and no head."""
  (student_variables, student), (teacher_variables, teacher) = outputs(8, form), outputs(8, form)
  teacher_variables = jax.tree.map(lambda a: a + 0.1, teacher_variables)
  near = lambda s, t, aux, context: jnp.mean((s - t) ** 2, -1)
  loss = kd.on_pairs("near", near, student=TAP, teacher=TAP)
  body = lambda v: np.maximum(np.asarray(X) @ v["params"]["Dense_0"]["kernel"] + v["params"]["Dense_0"]["bias"], 0)

  def total(student_variables):
    per_example = loss(student(student_variables), teacher(teacher_variables))[0]
    return per_example.sum(), per_example

  gradient, got = jax.jit(jax.grad(total, has_aux=True))(student_variables)
  gradient = gradient["params"]
  np.testing.assert_allclose(got, ((body(student_variables) - body(teacher_variables)) ** 2).mean(-1), rtol=1e-5)
  assert jnp.any(gradient["Dense_0"]["kernel"] != 0) and not jnp.any(gradient["Dense_1"]["kernel"])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("form", ["dict", "tuple", "named", "none"])
def test_an_objective_runs_with_them(form):
  (student_variables, student), (teacher_variables, teacher) = outputs(8, form), outputs(16, form)
  objective = kd.weighted([kd.Term("hint", kd.fitnet(TAP, TAP)), kd.Term("pairs", kd.rkd(TAP, TAP))])
  each = (student, student_variables), (teacher, teacher_variables)
  shapes = [jax.eval_shape(f, v) for f, v in each]
  aux, aux_state = jax.jit(lambda key: objective.init(key, *shapes))(jax.random.key(0))
  more = {"step": jnp.zeros((), jnp.int32), "key": jax.random.key(1)}

  @jax.jit
  def run(student_variables, teacher_variables, more):
    return objective(student(student_variables), teacher(teacher_variables), {}, axis_name=None, **more)

  total, _, logs = run(student_variables, teacher_variables, {"aux": aux, "aux_state": aux_state, **more})
  assert jnp.isfinite(total) and total > 0 and {"hint", "pairs"} <= set(logs)


def test_a_loss_that_reads_logits_refuses_several():
  variables, student = outputs(8, "dict", (TAP, "Dense_1/kernel:out"))
  loss = kd.byot((TAP, TAP))
  with pytest.raises(UserError, match="the loss 'byot' reads logits .* of the student; got dict"):
    loss.init(jax.random.key(0), student(variables), None, None)


def test_a_function_of_other_arguments_is_refused_where_the_loss_is_made():
  for f in (lambda s, t: s - t, 3):
    with pytest.raises(UserError, match=r"'near' is called as f\(student, teacher, aux, context\): "):
      kd.on_pairs("near", f, student=TAP, teacher=TAP)
