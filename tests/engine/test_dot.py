"""The step with an optimizer that tells the task's gradient from the teacher's: what it is given, on every road."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd
import sparsity
from kd import Term, weighted
from leanax.core.errors import UserError
from leanax.engine.train import optim, parallel
from leanax.engine.train.step import training
from tests.engine import nets

KEEP = {"momentum": 0.6, "delta": 0.3}


def train(tx, forward=nets.student, objective=None, steps=4, size=8, **kwargs):
  init, step = training(forward, objective or nets.distillation(), tx, teacher=nets.teacher, **kwargs)
  step, s = jax.jit(step), init(nets.variables())
  for i in range(steps):
    s, metrics = step(s, nets.batch(size, i), nets.variables(5))
  return s, metrics


@pytest.mark.exact
@pytest.mark.parametrize(
  "more", [{}, {"clip_norm": 0.05, "weight_decay": 0.1, "nesterov": True, "rates": {"aux": 0.5}}]
)
def test_without_a_difference_it_is_sgd_bit_for_bit(more):
  dot, _ = train(optim.optimizer("dot", 0.1, delta=0.0, **more))
  sgd, _ = train(optim.optimizer("sgd", 0.1, **more))
  jax.tree.map(np.testing.assert_array_equal, dot.params, sgd.params)
  other, _ = train(optim.optimizer("dot", 0.1, **more))
  assert nets.largest_gap(other.params, sgd.params) > 1e-4


def test_the_task_is_the_gradient_of_the_terms_without_a_teacher():
  """Two momenta, one that is fed the task's terms alone and one the teacher's alone, move it as it moves."""

  def objective(hard, soft):
    terms = [
      Term("soft", kd.hinton(2.0), lambda i: soft * (1.0 + i.astype(jnp.float32))),
      Term("hard", kd.hard_labels(), hard),
    ]
    return weighted(terms)

  dot, _ = train(optim.optimizer("dot", 0.1, **KEEP), nets.smooth, objective(0.3, 0.7))
  params = nets.variables()
  buffers = [jax.tree.map(jnp.zeros_like, params["params"]) for _ in range(2)]
  for i in range(4):
    for k, (share, momentum) in enumerate(zip(((0.3, 0.0), (0.0, 0.7)), (0.3, 0.9), strict=True)):
      init, step = training(nets.smooth, objective(*share), optax.sgd(1.0), teacher=nets.teacher)
      moved, _ = step(init(params).replace(step=jnp.int32(i)), nets.batch(8, i), nets.variables(5))
      grads = jax.tree.map(jnp.subtract, params["params"], moved.params)
      buffers[k] = jax.tree.map(lambda b, g, m=momentum: m * b + g, buffers[k], grads)
    new = jax.tree.map(lambda w, a, b: w - 0.1 * (a + b), params["params"], *buffers)
    params = {**params, "params": new}
  assert nets.largest_gap(dot.params, params["params"]) < 1e-5


def test_clipping_shortens_both_by_one_factor():
  params, grads = {"params": {"a": jnp.array([3.0, 4.0])}}, {"params": {"a": jnp.array([6.0, 8.0])}}
  clipped = optim.optimizer("dot", 0.1, clip_norm=1.0, **KEEP)
  plain = optim.optimizer("dot", 0.1, **KEEP)
  part = {"params": {"a": jnp.array([0.0, 20.0])}}
  tenth = jax.tree.map(lambda g: g / 10, (grads, part))
  got = clipped.update(grads, clipped.init(params), params, task=part)
  expected = plain.update(tenth[0], plain.init(params), params, task=tenth[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


def test_accumulation_equals_the_large_batch():
  tx = optim.optimizer("dot", 0.1, **KEEP, clip_norm=0.2)
  one, four = (training(nets.smooth, nets.distillation(), tx, teacher=nets.teacher, accumulate=n) for n in (1, 4))
  step, small, teacher = jax.jit(one.step), jax.jit(four.step), nets.variables(5)
  s, t = one.init(nets.variables()), four.init(nets.variables())
  for i in range(3):
    batch = nets.batch(16, i)
    s, _ = step(s, batch, teacher)
    t, _ = small(t, batch, teacher)
  assert nets.largest_gap(s.params, t.params) < 1e-5


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["pmap", "shard_map", "mesh"])
def test_devices_give_the_same_numbers(mode):
  tx = optim.optimizer("dot", 0.1, **KEEP)
  init, step = training(nets.student, nets.distillation(), tx, teacher=nets.teacher)
  runs = [parallel.parallelize(step, way) for way in ("jit", mode)]
  states = [init(nets.variables()) for _ in runs]
  for i in range(3):
    states = [run(s, nets.batch(8, i), nets.variables(5))[0] for run, s in zip(runs, states, strict=True)]
  assert nets.largest_gap(states[0].params, states[1].params) < 1e-5


def test_pruned_entries_are_zero_and_grow_back_from_nothing():
  """A pruned entry has no part in either buffer: the task's gradient is masked as the whole one is."""
  kept = {"params": {"w": jnp.array([1.0, 0.0])}}
  tx = sparsity.hold(optim.optimizer("dot", 0.1, **KEEP), rules=(("*", True),))
  s = tx.init(kept)
  ones = {"params": {"w": jnp.ones(2)}}
  for _ in range(3):
    updates, s = tx.update(ones, s, kept, step=jnp.int32(0), task=jax.tree.map(lambda x: x / 2, ones))
    kept = optax.apply_updates(kept, updates)
  assert float(kept["params"]["w"][1]) == 0
  for buffer in jax.tree.leaves(s.inner):
    assert buffer.shape != (2,) or (float(buffer[1]) == 0 and float(buffer[0]) != 0)
  pruned = sparsity.magnitude(optim.optimizer("dot", 0.1), density=0.5)
  trained, _ = train(pruned)
  assert np.count_nonzero(trained.params["last"]["kernel"]) == trained.params["last"]["kernel"].size // 2


def test_an_objective_without_terms_is_refused():
  def objective(student, teacher, batch, **kwargs):
    return jnp.mean(student.logits), {}, {}

  with pytest.raises(UserError, match="expected an objective of terms"):
    train(optim.optimizer("dot", 0.1), objective=objective)
