"""Distillation, int8 training and pruning in one step: all at work, proven to replicate, resumed exactly."""

import functools

import jax
import numpy as np
import optax
import pytest

import quant
import sparsity
from leanax import graph
from leanax.core.errors import UserError
from leanax.engine.train import forward, optim, parallel
from leanax.engine.train.step import training
from tests.engine import nets

DENSITY = 0.5


def variables():
  return {"params": nets.variables()["params"]}


def model(variables, x):
  return nets.without_norm(variables, x)[0]


@functools.cache
def composed(accumulate=1):
  calibration = nets.batch(16, 99)["image"]
  net = quant.post_training(graph.net(model, variables(), calibration), [calibration], "w8a8 learned")
  inner = optim.optimizer("adamw", 0.01, weight_decay=0.1, rates={"scale": 0.1})
  rules = (("*/kernel", True),)
  tx = sparsity.magnitude(inner, density=DENSITY, schedule=sparsity.cubic(1, 4, every=1), rules=rules)
  init, step = training(
    forward.plain(net.apply), nets.distillation(), tx, teacher=nets.teacher, ema=0.9, accumulate=accumulate
  )
  return jax.jit(step, static_argnames="axis_name"), init(net.variables), quant.quantize(model, "w8a8 learned")


def run(step, s, first, last):
  for i in range(first, last):
    s, metrics = step(s, nets.batch(8, i), nets.variables(1))
  return s, metrics


@pytest.mark.sampled(2)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_all_three_are_at_work(accumulate):
  step, start, quantized = composed(accumulate)
  end, metrics = run(step, start, 0, 8)
  masks = sparsity.masks(end.opt_state)["params"]
  for layer in ("first", "last"):
    kernel, mask = end.params[layer]["kernel"], masks[layer]["kernel"]
    assert int(mask.sum()) == kernel.size * DENSITY
    np.testing.assert_array_equal(kernel == 0, ~mask)
    assert not end.ema["params"][layer]["kernel"][~mask].any()
    assert end.ema["params"][layer]["kernel"][mask].all()
  assert nets.largest_gap(start.params, end.params) > 0
  logits, _ = quantized.apply(end.qparams, end.quant_state, end.variables, nets.batch()["image"])
  assert nets.largest_gap(logits, model(end.variables, nets.batch()["image"])) > 0  # the forward pass does round
  assert set(metrics) == {"loss", "hard", "soft", "accuracy", "grad_norm", "teacher_not_finite"}


def test_the_composed_step_is_proven_to_replicate():
  step, start, _ = composed()
  parallel.prove_replication(step, jax.devices(), start, nets.batch(8), nets.variables(1))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
def test_the_composed_step_on_four_devices(mode):
  step, start, _ = composed()
  (_, a), (_, b) = run(step, start, 0, 1), run(parallel.parallelize(step, mode), start, 0, 1)
  np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
  np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-4)


@pytest.mark.parametrize("dropped", [None, "step", "params", "qparams", "opt_state", "ema"])
def test_a_resumed_composition_equals_the_uninterrupted_one(dropped):
  step, start, _ = composed(accumulate=2)
  whole, _ = run(step, start, 0, 5)
  stopped = jax.tree.map(np.asarray, run(step, start, 0, 3)[0])
  if dropped:
    stopped = stopped.replace(**{dropped: getattr(start, dropped)})
  resumed, _ = run(step, stopped, 3, 5)
  same = all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True))
  assert same == (dropped is None)


@pytest.mark.parametrize("order", ["clipped after", "scaled after"])
def test_nothing_may_follow_a_sparse_method(order):
  after = {"clipped after": optax.clip_by_global_norm(1.0), "scaled after": optax.scale(0.5)}[order]
  tx = optax.chain(sparsity.magnitude(optax.sgd(0.1), density=0.5, rules=(("*kernel", True),)), after)
  init, step = training(nets.smooth, nets.supervised(), tx)
  with pytest.raises(UserError, match="has to be the outermost"):
    step(init(variables()), nets.batch())
  safe = optax.apply_if_finite(sparsity.magnitude(optax.sgd(0.1), density=0.5, rules=(("*kernel", True),)), 3)
  init, step = training(nets.smooth, nets.supervised(), safe)
  step(init(variables()), nets.batch())
