"""RigL against its algorithm in float64 numpy, by hand, and at its limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsity
from leanax.core.errors import UserError
from sparsity import schedules
from tests.sparsity import nets


def test_by_hand():
  """f(1) = 1 / 2 (1 + cos(pi / 2)): 2 of 4 are dropped, 2 and -1; gradients 9, of a dropped one, and -7 are grown."""
  w = {"kernel": jnp.array([[4.0, -3.0, 2.0, -1.0, 0.0, 0.0, 0.0, 0.0]])}
  g = {"kernel": jnp.array([[0.0, 99.0, 0.0, 9.0, 5.0, -7.0, 1.0, 0.0]])}
  tx = sparsity.rigl(optax.sgd(0.1), density=0.5, schedule=schedules.periodic(1, 2), fraction=1.0)
  state = tx.init(w)
  state = state._replace(masks={"kernel": sparsity.pack(w["kernel"] != 0, -1)})
  updates, state = tx.update(g, state, w, step=jnp.int32(1))
  np.testing.assert_array_equal(nets.masks(state)["kernel"], [[1, 1, 0, 1, 0, 1, 0, 0]])
  np.testing.assert_allclose(optax.apply_updates(w, updates)["kernel"], [[4, -12.9, 0, -1.9, 0, 0.7, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize(("every", "end"), [(2, 7), (3, 8)])
def test_masks_and_weights_of_a_run(every, end):
  rate, density, alpha = 0.05, 0.4, 0.5
  tx = sparsity.rigl(
    optax.sgd(rate), density=density, schedule=schedules.periodic(every, end), fraction=alpha, allocation="uniform"
  )
  tree = nets.params()
  mask = np.asarray(nets.masks(jax.jit(tx.init)(tree))["Dense_0"]["kernel"])
  kept, w, moved = round(153 * density), np.asarray(tree["Dense_0"]["kernel"], np.float64) * mask, []
  for step, after, state in nets.train(tx, tree, end + every):
    g = np.asarray(nets.gradients(tree, step)["Dense_0"]["kernel"], np.float64)
    if step % every == 0 and 0 < step < end:
      number = math.floor(alpha / 2 * (1 + math.cos(math.pi * step / end)) * kept)
      stay = nets.first(np.abs(w), mask, kept - number)
      mask = stay | nets.first(np.abs(g), ~stay, number)
      moved.append(number)
    w = np.where(mask, w - rate * g, 0)
    np.testing.assert_array_equal(nets.masks(state)["Dense_0"]["kernel"], mask)
    np.testing.assert_allclose(after["Dense_0"]["kernel"], w, rtol=1e-5, atol=1e-6)
    nets.assert_bit_zero(mask, after["Dense_0"]["kernel"])
  assert moved == sorted(moved, reverse=True) and moved[-1] < moved[0]


def test_a_schedule_without_an_end_ends_after_its_last_update():
  w = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(10, 10)), jnp.float32)}
  by_hand = sparsity.Schedule((0, 2), (0.0, 0.0))
  runs = [
    list(nets.train(sparsity.rigl(optax.sgd(0.1), density=0.5, schedule=schedule), w, 4))[-1]
    for schedule in (by_hand, by_hand._replace(end=3))
  ]
  jax.tree.map(np.testing.assert_array_equal, runs[0][1:], runs[1][1:])


def test_nothing_moves_at_the_fraction_0():
  tx = sparsity.rigl(optax.adam(0.1), density=0.3, schedule=schedules.periodic(1, 4), fraction=0.0)
  tree = nets.params()
  start = nets.masks(jax.jit(tx.init)(tree))["Dense_0"]["kernel"]
  *_, (_, _, state) = nets.train(tx, tree, 4)
  np.testing.assert_array_equal(nets.masks(state)["Dense_0"]["kernel"], start)


def test_in_a_config():
  """The schedule's end is a share of the stage: 1/2 of 6 updates."""
  from leanax.pipeline import optimizers
  from tests.integration import jobs

  group = {"name": "rigl", "density": 0.5, "schedule": {"name": "periodic", "every": 1, "end": 0.5}, "fraction": 1.0}
  config = jobs.experiment(
    stages__pruned__sparsity=group, stages__pruned__optimizer={"name": "sgd", "learning_rate": 1e-10}
  )
  tx = optimizers.transformation("pruned", config.stages["pruned"], 6)
  tree = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(10, 10)), jnp.float32)}
  before = np.asarray(nets.masks(jax.jit(tx.init)(tree))["kernel"])
  masks = [np.asarray(nets.masks(state)["kernel"]) for _, _, state in nets.train(tx, tree, 4)]
  np.testing.assert_array_equal(masks[0], before)
  assert np.sum(masks[1] != before) > 0 and [mask.sum() for mask in masks] == [50] * 4
  np.testing.assert_array_equal(masks[2], masks[3])


@pytest.mark.parametrize(
  ("keywords", "sentence"),
  [
    ({"fraction": 1.5}, "rigl: fraction is 1.5; expected a number from 0 to 1"),
    ({"schedule": 100}, "schedule is 100; expected such as"),
    ({"schedule": sparsity.cubic(0, 5)}, "the density of a mask that moves is constant, but .* lets it fall"),
    ({"schedule": sparsity.Schedule((4,), (0.0,), end=4)}, "the schedule ends at 4 and makes a mask at 4; expected it"),
    ({"density": 2.0}, "density is 2.0; expected a density"),
  ],
)
def test_mistakes(keywords, sentence):
  with pytest.raises(UserError, match=sentence):
    sparsity.rigl(optax.sgd(0.1), **{"density": 0.5, "schedule": schedules.periodic(1, 3), **keywords})
