"""Masks that move: against float64 numpy where nothing is random, and by what the paper says where it is."""

import functools
import itertools
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


def by_gradient():
  return sparsity.Score(lambda w, g, memory, *, step, key: g, absolute=True)


@pytest.mark.parametrize("fraction", [0.29, optax.cosine_decay_schedule(0.5, 7)])
def test_drop_by_magnitude_and_grow_by_gradient_against_numpy(fraction):
  """RigL's rule: f(t) = a / 2 (1 + cos(pi t / T)), and what is dropped may be grown again, with its value."""
  rate, density = 0.05, 0.4
  tx = sparsity.dynamic(
    optax.sgd(rate),
    sparsity.criteria.magnitude(),
    by_gradient(),
    fraction,
    schedules.periodic(2, 7),
    density=density,
    allocation="uniform",
  )
  tree = nets.params()
  mask = np.asarray(nets.masks(jax.jit(tx.init)(tree))["Dense_0"]["kernel"])
  kept, w = round(153 * density), np.asarray(tree["Dense_0"]["kernel"], np.float64) * mask
  for step, after, state in nets.train(tx, tree, 9):
    g = np.asarray(nets.gradients(tree, step)["Dense_0"]["kernel"], np.float64)
    if step in (2, 4, 6):
      part = 0.29 if fraction == 0.29 else 0.25 * (1 + math.cos(math.pi * step / 7))
      number = math.floor(part * kept)
      stay = nets.first(np.abs(w), mask, kept - number)
      mask = stay | nets.first(np.abs(g), ~stay, number)
    w = np.where(mask, w - rate * g, 0)
    np.testing.assert_array_equal(nets.masks(state)["Dense_0"]["kernel"], mask)
    np.testing.assert_allclose(after["Dense_0"]["kernel"], w, rtol=1e-5, atol=1e-6)
    nets.assert_bit_zero(mask, after["Dense_0"]["kernel"])


@functools.cache
def moved(seed, fraction=0.3, density=0.25, **keywords):
  """The masks and weights of SET before and after each update, weights resting, so that only masks move them."""
  tree = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(40, 30)), jnp.float32)}
  tx = sparsity.set(
    optax.sgd(0.0), density=density, fraction=fraction, schedule=schedules.periodic(1, 4), seed=seed, **keywords
  )
  masks, weights = [np.asarray(nets.masks(jax.jit(tx.init)(tree))["kernel"])], [np.asarray(tree["kernel"])]
  for _, after, state in nets.train(tx, tree, 5):
    masks.append(np.asarray(nets.masks(state)["kernel"]))
    weights.append(np.asarray(after["kernel"]))
  return masks, weights


def test_set_drops_the_smallest_and_grows_as_many_at_random():
  masks, weights = moved(0)
  np.testing.assert_array_equal(masks[0], masks[1])  # the first update moves nothing
  for old, new, w in zip(masks[1:4], masks[2:5], weights[1:4]):
    stay = nets.first(np.abs(w), old, 300 - 90)
    assert np.sum(new) == 300 and np.all(new | ~stay)
    grown = new & ~stay
    assert np.sum(grown) == 90
    # Uniform over the 990 others, 90 of which were dropped just now: 8.2 of these return, by chance.
    assert 0 < np.sum(grown & old) < 25
  np.testing.assert_array_equal(masks[4], masks[5])  # the schedule's end


def test_set_grows_everywhere_with_a_new_draw_each_time():
  masks, _ = moved(0, fraction=1.0)
  rows = np.sum([mask.sum(1) for mask in masks[1:]], axis=0)
  assert rows.min() > 10 and rows.max() < 70  # of 37.5 on average
  for old, new in itertools.pairwise(masks[1:5]):
    assert 40 < np.sum(old & new) < 115  # 75 by chance


def test_set_starts_grown_weights_from_zero():
  masks, weights = moved(0)
  for old, new, before, after in zip(masks[1:4], masks[2:5], weights[1:4], weights[2:5]):
    assert np.all(after[new & ~old] == 0) and np.all(after[~new] == 0)
    np.testing.assert_array_equal(after[new & old], before[new & old])


def test_grown_slots_start_from_zero():
  """Even where the first masks move in the first update, before which the parameters and slots are dense."""
  tree = nets.params()
  tx = sparsity.set(optax.adam(0.1), density=0.3, schedule=schedules.periodic(1, 2, start=0), fraction=0.5)
  state = jax.jit(tx.init)(tree)
  first_masks = nets.masks(state)
  with jax.numpy_dtype_promotion("standard"):
    updates, state = jax.jit(tx.update)(nets.gradients(tree, 0), state, tree)
  after = optax.apply_updates(tree, updates)["Dense_0"]["kernel"]
  grown = np.asarray(nets.masks(state)["Dense_0"]["kernel"] & ~first_masks["Dense_0"]["kernel"])
  assert np.sum(grown) > 5
  g = np.asarray(nets.gradients(tree, 0)["Dense_0"]["kernel"])
  np.testing.assert_allclose(np.asarray(after)[grown], -0.1 * np.sign(g)[grown], rtol=1e-4)  # Adam's first step from 0


def test_set_is_a_function_of_the_seed():
  (first_masks, _), (again, _), (other, _) = moved(0), moved.__wrapped__(0), moved(1)  # the second one anew
  np.testing.assert_array_equal(first_masks, again)
  assert all(0.5 < np.mean(a == b) < 0.75 for a, b in zip(first_masks, other))  # 0.25^2 + 0.75^2 by chance


def test_erk_and_dense_layers():
  """The paper's Erdos-Renyi densities; a layer that they leave dense has no mask."""
  tree = {"large": {"kernel": jnp.ones((60, 50))}, "small": {"kernel": jnp.ones((2, 2))}}
  tx = sparsity.set(optax.sgd(0.1), density=0.1, schedule=schedules.periodic(1, 3))
  masks = nets.masks(jax.jit(tx.init)(tree))
  assert masks["small"]["kernel"] is None
  share = sparsity.erk({"large": (60, 50), "small": (2, 2)}, 0.1)["large"]
  assert int(masks["large"]["kernel"].sum()) == round(3000 * share)


def test_layers_of_one_leaf_keep_their_numbers():
  tree = {
    "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 12, 10)) * [[[1]], [[9]], [[99]]], jnp.float32)
  }
  tx = sparsity.set(
    optax.adam(0.1), density=0.2, schedule=schedules.periodic(1, 4), stacked=["kernel"], allocation="uniform"
  )
  for _, _, state in nets.train(tx, tree, 4):
    np.testing.assert_array_equal(nets.masks(state)["kernel"].sum((1, 2)), [24, 24, 24])


def test_seeds_by_vmap():
  tx = sparsity.set(optax.sgd(0.1, momentum=0.9), density=0.3, schedule=schedules.periodic(1, 3), allocation="uniform")
  trees = [nets.params(seed) for seed in range(2)]
  stacked = jax.tree.map(lambda *xs: np.stack(xs), *trees)
  state = jax.jit(jax.vmap(tx.init))(stacked)

  def update(tree, state, step):
    updates, state = tx.update(nets.gradients(tree, step), state, tree, step=step)
    return optax.apply_updates(tree, updates), state

  run = jax.jit(jax.vmap(update, (0, 0, None)))
  for step in range(3):
    stacked, state = run(stacked, state, jnp.int32(step))
  for i, tree in enumerate(trees):
    *_, (_, _, wanted) = nets.train(tx, tree, 3)
    got = nets.masks(state)["Dense_0"]["kernel"][i]
    np.testing.assert_array_equal(got, nets.masks(wanted)["Dense_0"]["kernel"])


def test_both_may_remember():
  taylor = sparsity.criteria.taylor
  tree = nets.params()
  tx = sparsity.dynamic(optax.adam(0.1), taylor(0.5), taylor(0.9), 0.3, schedules.periodic(1, 4), density=0.3)
  for _, after, state in nets.train(tx, tree, 4):
    nets.assert_bit_zero(nets.masks(state)["Dense_0"]["kernel"], after["Dense_0"]["kernel"])
  half, slow = state.memory["Dense_0"]["kernel"]
  assert half.shape == slow.shape == (17, 9) and np.any(half != slow) and state.memory["Dense_0"]["bias"] is None


@pytest.mark.parametrize(
  ("keywords", "sentence"),
  [
    ({"fraction": 1.5}, "sparsity.dynamic: fraction is 1.5; expected a number from 0 to 1"),
    ({"fraction": lambda step: -1.0}, "sparsity.dynamic: fraction is -1.0"),
    ({"fraction": lambda step: "x"}, "sparsity.dynamic: fraction is 'x'"),
    ({"seed": 0.5}, "sparsity: seed is 0.5; expected a whole number, 0 or more"),
    ({"density": None}, "either density= or threshold="),
    ({"density": 2.0}, "density is 2.0; expected a density"),
    ({"schedule": 100}, "schedule is 100; expected such as"),
    ({"schedule": None}, "schedule is None"),
    ({"schedule": sparsity.cubic(0, 5)}, "the density of a mask that moves is constant, but .* lets it fall"),
  ],
)
def test_mistakes(keywords, sentence):
  with pytest.raises(UserError, match=sentence):
    sparsity.set(optax.sgd(0.1), **{"density": 0.5, "schedule": schedules.periodic(1, 3), **keywords})
