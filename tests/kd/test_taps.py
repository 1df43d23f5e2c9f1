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


@pytest.mark.parametrize("form", ["dict", "tuple", "named", "none"])
def test_a_pair_of_activations(form):
  """The number, and a gradient that reaches the body and no head."""
  (mine, student), (its, teacher) = outputs(8, form), outputs(8, form)
  its = jax.tree.map(lambda a: a + 0.1, its)
  near = lambda s, t, aux, context: jnp.mean((s - t) ** 2, -1)
  loss = kd.on_pairs("near", near, student=TAP, teacher=TAP)
  body = lambda v: np.maximum(np.asarray(X) @ v["params"]["Dense_0"]["kernel"] + v["params"]["Dense_0"]["bias"], 0)

  def total(mine):
    per_example = loss(student(mine), teacher(its))[0]
    return per_example.sum(), per_example

  gradient, got = jax.jit(jax.grad(total, has_aux=True))(mine)
  gradient = gradient["params"]
  np.testing.assert_allclose(got, ((body(mine) - body(its)) ** 2).mean(-1), rtol=1e-5)
  assert jnp.any(gradient["Dense_0"]["kernel"] != 0) and not jnp.any(gradient["Dense_1"]["kernel"])


@pytest.mark.parametrize("form", ["dict", "tuple", "named", "none"])
def test_an_objective_begins_and_runs_with_them(form):
  (mine, student), (its, teacher) = outputs(8, form), outputs(16, form)
  objective = kd.weighted([kd.Term("hint", kd.fitnet(TAP, TAP)), kd.Term("pairs", kd.rkd(TAP, TAP))])
  shapes = (jax.eval_shape(f, v) for f, v in ((student, mine), (teacher, its)))
  aux, aux_state = jax.jit(lambda key: objective.init(key, *shapes))(jax.random.key(0))
  more = {"step": jnp.zeros((), jnp.int32), "key": jax.random.key(1)}

  @jax.jit
  def run(mine, its, more):
    return objective(student(mine), teacher(its), {}, axis_name=None, **more)

  total, _, logs = run(mine, its, {"aux": aux, "aux_state": aux_state, **more})
  assert jnp.isfinite(total) and total > 0 and {"hint", "pairs"} <= set(logs)


def test_a_loss_that_reads_logits_says_that_they_are_several():
  mine, student = outputs(8, "dict", (TAP, "Dense_1/kernel:out"))
  loss = kd.byot((TAP, TAP))
  with pytest.raises(UserError, match="the loss 'byot' reads logits .* of the student; got dict"):
    loss.init(jax.random.key(0), student(mine), None, None)
