"""The train step against a float64 oracle, and what it promises of the teacher, the averages and resumption."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import kd
from kd import Term, weighted
from kd.counting import batch_mean
from leanax.core.errors import UserError
from leanax.engine.train import optim
from leanax.engine.train.forward import bfloat16, plain
from leanax.engine.train.step import training
from tests.engine import nets


def linear(variables, x, *, train, key):
  return x @ variables["params"]["kernel"] + variables["params"]["bias"], {}


def step_and_state(tx=None, forward=nets.student, objective=None, variables=None, **kwargs):
  tx = tx or optim.optimizer("sgd", 0.1, momentum=0.9)
  init, step = training(forward, objective or nets.supervised(), tx, **kwargs)
  return jax.jit(step), init(variables or nets.variables())


def test_steps_equal_a_float64_oracle():
  rng = np.random.default_rng(0)
  w, b, tw = (rng.normal(size=s) for s in ((4, 3), (3,), (4, 3)))
  f32 = lambda a: jnp.asarray(a, jnp.float32)
  variables, teacher_variables = {"params": {"kernel": f32(w), "bias": f32(b)}}, {"params": {"kernel": f32(tw)}}
  step, s = step_and_state(
    optim.optimizer("sgd", 0.1, momentum=0.9, weight_decay=0.01),
    plain(linear),
    nets.distillation(),
    variables,
    teacher=lambda v, x: x @ v["params"]["kernel"],
  )
  velocity = [np.zeros_like(w), np.zeros_like(b)]
  for i in range(4):
    batch = nets.batch(8, i)
    x, onehot = np.asarray(batch["image"], np.float64), np.eye(3)[np.asarray(batch["label"])]
    q, q2 = scipy.special.softmax(x @ w + b, -1), scipy.special.softmax((x @ w + b) / 2, -1)
    p2 = scipy.special.softmax(x @ tw / 2, -1)
    hard = -np.log((q * onehot).sum(-1)).mean()
    soft = 4 * scipy.special.rel_entr(p2, q2).sum(-1).mean()
    d = (0.3 * (q - onehot) + 0.7 * 2 * (q2 - p2)) / 8
    s, metrics = step(s, batch, teacher_variables)
    np.testing.assert_allclose(metrics["loss"], 0.3 * hard + 0.7 * soft, rtol=1e-5)
    np.testing.assert_allclose([metrics["hard"], metrics["soft"]], [hard, soft], rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (q.argmax(-1) == onehot.argmax(-1)).mean())
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(((x.T @ d) ** 2).sum() + (d.sum(0) ** 2).sum()), rtol=1e-5)
    velocity = [0.9 * velocity[0] + x.T @ d + 0.01 * w, 0.9 * velocity[1] + d.sum(0)]
    w, b = w - 0.1 * velocity[0], b - 0.1 * velocity[1]
  np.testing.assert_allclose(s.params["kernel"], w, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(s.params["bias"], b, rtol=1e-5, atol=1e-6)
  assert int(s.step) == 4


def test_cached_logits_are_the_live_teacher():
  teacher_variables = nets.variables(5)
  live, s = step_and_state(objective=nets.distillation(), teacher=nets.teacher)
  cached, _ = step_and_state(objective=nets.distillation())
  batch = nets.batch()
  a, _ = live(s, batch, teacher_variables)
  b, _ = cached(s, batch | {"teacher_logits": nets.teacher(teacher_variables, batch["image"])})
  assert nets.largest_gap(a, b) < 1e-6


def test_teacher_gets_no_gradient():
  init, step = training(nets.student, nets.distillation(), optax.sgd(0.1), teacher=nets.teacher)
  s = init(nets.variables())
  grads = jax.jit(jax.grad(lambda t: step(s, nets.batch(), t)[1]["loss"]))(nets.variables(1))
  assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_teacher_mistakes_are_named():
  batch = nets.batch()
  step, s = step_and_state(objective=nets.distillation(), teacher=nets.teacher)
  with pytest.raises(UserError, match="there is a teacher to run"):
    step(s, batch | {"teacher_logits": jnp.zeros((8, 3))}, nets.variables())
  with pytest.raises(UserError, match="no teacher_variables"):
    step(s, batch)
  step, s = step_and_state(objective=nets.distillation())
  with pytest.raises(UserError, match="needs a teacher"):
    step(s, batch)


def test_terms_have_different_names_and_scheduled_weights():
  with pytest.raises(UserError, match="different names"):
    weighted([Term("a", kd.hinton()), Term("a", kd.hard_labels())])
  with pytest.raises(UserError, match="weight of term 'a' is -1.0; expected a number from 0 to 1e6"):
    weighted([Term("a", kd.hinton(), -1.0)])
  step, s = step_and_state(objective=weighted([Term("hard", kd.hard_labels(), lambda i: 1.0 + i.astype(jnp.float32))]))
  for i in range(3):
    s, metrics = step(s, nets.batch())
    np.testing.assert_allclose(metrics["loss"], (1 + i) * metrics["hard"], rtol=1e-6)


def test_padding_changes_nothing():
  values, valid = jnp.asarray([1.0, jnp.nan, 3.0]), jnp.asarray([True, False, True])
  assert float(batch_mean(values, valid, None)) == 2.0
  assert float(batch_mean(values, jnp.zeros(3, bool), None)) == 0.0


def test_objectives_own_their_auxiliary_state():
  def fn(student, teacher, context):
    gap = student.logits - context.aux["bias"]
    state = {"calls": context.aux_state["calls"] + 1}
    return kd.LossOut((gap**2).sum(-1), state, {"size": jnp.abs(gap).sum(-1)})

  loss = kd.Loss("fit", fn, needs_teacher=False)

  tx = optim.optimizer("sgd", 0.1, rates={"aux": 0.5})
  init, step = training(nets.student, weighted([Term("fit", loss)]), tx)
  step = jax.jit(step)
  aux, aux_state = {"fit": {"bias": jnp.ones(3)}}, {"fit": {"calls": jnp.zeros((), jnp.int32)}}
  s = init(nets.variables(), aux=aux, aux_state=aux_state)
  for _ in range(2):
    s, metrics = step(s, nets.batch())
  assert int(s.aux_state["fit"]["calls"]) == 2 and "fit/size" in metrics
  assert bool((s.aux["fit"]["bias"] != 1).all())


def test_accumulation_equals_the_large_batch():
  variables = {"params": nets.variables()["params"]}
  tx = optim.optimizer("adamw", 0.01, weight_decay=0.1, clip_norm=0.1)
  large, s = step_and_state(tx, nets.smooth, nets.supervised(), variables, ema=0.9)
  small, t = step_and_state(tx, nets.smooth, nets.supervised(), variables, ema=0.9, accumulate=4)
  for i in range(3):
    batch = nets.batch(16, i)
    s, _ = large(s, batch)
    t, _ = small(t, batch)
  assert int(s.step) == int(t.step) == 3
  assert nets.largest_gap(s.params, t.params) < 1e-5
  assert nets.largest_gap(s.ema, t.ema) < 1e-5


def test_a_loss_between_examples_is_refused_where_it_would_see_micro_batches():
  objective = weighted([Term("hard", kd.hard_labels()), Term("between", kd.dist())])
  assert objective.relational == ("between",)
  training(nets.student, objective, optim.optimizer("sgd", 0.1), teacher=nets.teacher)
  with pytest.raises(UserError, match="the term 'between' compares .* accumulate is 2: .*; expected accumulate 1"):
    training(nets.student, objective, optim.optimizer("sgd", 0.1), teacher=nets.teacher, accumulate=2)


def test_the_optimizer_counts_updates_not_batches():
  seen = []

  def update(updates, inner, params=None, *, step, **extra):
    jax.debug.callback(lambda i: seen.append(int(i)), step)
    return updates, inner

  tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
  step, s = step_and_state(tx, accumulate=2)
  for _ in range(3):
    s, _ = step(s, nets.batch())
  jax.effects_barrier()
  assert seen == [0, 1, 2]


def test_averages_equal_the_oracle_and_keep_pruned_entries_at_zero():
  def prune(updates, inner, params=None, *, step, **extra):
    del extra
    drop = lambda u, p: jnp.where((jnp.arange(p.size).reshape(p.shape) % 2 == 0) & (step >= 2), -p, u)
    return updates | {"params": jax.tree.map(drop, updates["params"], params["params"])}, inner

  tx = optax.chain(optim.optimizer("sgd", 0.1), optax.GradientTransformationExtraArgs(lambda params: (), prune))
  step, s = step_and_state(tx, ema=0.15)
  expected = jax.tree.map(np.float64, s.ema)
  for i in range(4):
    s, _ = step(s, nets.batch(8, i))
    d = min(0.15, (1 + i) / (10 + i))
    now = {"params": s.params, "qparams": s.qparams, "model_state": s.model_state}
    expected = jax.tree.map(lambda e, x, d=d: d * e + (1 - d) * np.float64(x), expected, now)
    expected["params"] = jax.tree.map(lambda e, x: np.where(np.asarray(x) == 0, 0, e), expected["params"], s.params)
  assert nets.largest_gap(s.ema, expected) < 1e-6
  kernel = s.ema["params"]["first"]["kernel"]
  assert not kernel.reshape(-1)[::2].any() and kernel.reshape(-1)[1::2].all()
  assert s.averaged.variables["batch_stats"] is s.ema["model_state"]["batch_stats"]


def with_dropout(variables, x, *, train, key):
  x = jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x, 0.0)
  return nets.mlp(variables, x, train=train, key=key)


def run(step, s, first, last):
  for i in range(first, last):
    s, _ = step(s, nets.batch(8, i))
  return s


PARTS = ("step", "params", "model_state", "opt_state", "ema")


@functools.cache
def uninterrupted():
  """The compiled step, its start, and the state after six updates."""
  rate = optim.schedule("cosine", 0.05, 8, warmup=2)
  step, start = step_and_state(optim.optimizer("adamw", rate), plain(with_dropout), ema=0.9)
  return step, start, run(step, start, 0, 6)


@pytest.mark.parametrize("dropped", [None, *PARTS])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(dropped):
  step, start, whole = uninterrupted()
  stopped = jax.tree.map(np.asarray, run(step, start, 0, 3))  # through host memory, as a checkpoint goes
  if dropped:
    stopped = stopped.replace(**{dropped: getattr(start, dropped)})
  resumed = run(step, stopped, 3, 6)
  same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True))
  assert same == (dropped is None)


def test_each_micro_batch_has_its_own_randomness():
  """The draws are those of single batches in as many steps: a key is of the seed and the micro-batch's number."""

  def drawing(variables, x, *, train, key):
    drawn = jax.random.uniform(key)
    kept = variables["draws"]["last"]
    return x @ variables["params"]["kernel"], {"draws": {"last": jnp.concatenate([kept[1:], drawn[None]])}}

  def draws(accumulate, steps):
    start = {"params": {"kernel": jnp.ones((nets.FEATURES, nets.CLASSES))}, "draws": {"last": jnp.zeros(4)}}
    step, state = step_and_state(forward=plain(drawing), variables=start, accumulate=accumulate)
    for _ in range(steps):
      state, _ = step(state, nets.batch(8))
    return np.asarray(state.model_state["draws"]["last"])

  np.testing.assert_array_equal(draws(2, 2), draws(1, 4))
  assert len(set(draws(2, 2))) == 4


def test_seeds_give_different_randomness():
  step, s = step_and_state(forward=plain(with_dropout))
  one, other = (step(s, nets.batch(), seed=seed)[0] for seed in (0, 1))
  assert nets.largest_gap(one.params, other.params) > 0
  assert nets.largest_gap(one.params, step(s, nets.batch())[0].params) == 0


def test_bfloat16_computes_low_and_keeps_masters():
  def recording(variables, x, **kwargs):
    assert x.dtype == jnp.bfloat16 and variables["params"]["kernel"].dtype == jnp.bfloat16
    logits, _ = linear(variables, x, **kwargs)
    stats = variables["batch_stats"]["mean"]
    return logits, {"batch_stats": {"mean": (0.999 * stats + 0.001 * x.mean().astype(stats.dtype)).astype(x.dtype)}}

  variables = {"params": {"kernel": jnp.full((4, 3), 0.1), "bias": jnp.zeros(3)}, "batch_stats": {"mean": jnp.ones(())}}
  step, s = step_and_state(forward=plain(bfloat16(recording)), variables=variables)
  new, metrics = step(s, nets.batch())
  assert jax.tree.map(lambda a: a.dtype, new) == jax.tree.map(lambda a: a.dtype, s)
  assert metrics["loss"].dtype == jnp.float32
  full, _ = step_and_state(forward=plain(lambda v, x, **k: (linear(v, x, **k)[0], {})), variables=variables)
  assert 0 < nets.largest_gap(new.params, full(s, nets.batch())[0].params) < 1e-2
