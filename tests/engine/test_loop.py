"""The loop: resumption, bounds, hooks, what stops it, and several seeds at once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from leanax.engine.train import evaluate, loop, optim, parallel, seeds
from leanax.engine.train.loop import Hook, fit
from leanax.engine.train.step import training
from tests.engine import nets

EXAMPLES, BATCH = 64, 8


def data():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(EXAMPLES, nets.FEATURES)).astype(np.float32)
  return {
    "image": jnp.asarray(x),
    "label": jnp.asarray((x @ rng.normal(size=(nets.FEATURES, 3))).argmax(-1), jnp.int32),
  }


def get_batch(data, step, *, seed, part):
  """Rows drawn from (seed, step); part k of n of them."""
  rows = jax.random.randint(jax.random.fold_in(jax.random.key(seed), step), (BATCH,), 0, EXAMPLES)
  index, count = part
  rows = jax.lax.dynamic_slice(rows, (index * (BATCH // count),), (BATCH // count,))
  return {name: array[rows] for name, array in data.items()}


def setup(**kwargs):
  tx = optim.optimizer("sgd", optim.schedule("cosine", 0.2, 20, warmup=3))
  init, step = training(nets.student, nets.distillation(), tx, teacher=nets.teacher, ema=0.9, **kwargs)
  return step, init(nets.variables())


def go(steps, start=None, **kwargs):
  step, fresh = setup()
  return fit(step, start or fresh, get_batch, data(), steps=steps, teacher_variables=nets.variables(1), **kwargs)


def same(a, b):
  return all(bool((np.asarray(x) == np.asarray(y)).all()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_a_stopped_run_resumes_bit_for_bit(steps_per_call):
  whole, history = go(12, steps_per_call=steps_per_call)
  half, early = go(7, steps_per_call=steps_per_call)
  half = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), half)
  resumed, late = go(12, half, steps_per_call=steps_per_call)
  assert same(whole, resumed) and int(whole.step) == 12
  assert history["loss"].shape == (12,) and history["loss"][-1] < history["loss"][0]
  for name, values in history.items():
    np.testing.assert_array_equal(values, np.concatenate([early[name], late[name]]))
  finished, nothing = go(12, whole, steps_per_call=steps_per_call)
  assert same(finished, whole) and nothing == {}


def test_steps_a_call_change_nothing_but_rounding():
  one, several = go(10, steps_per_call=1), go(10, steps_per_call=4)
  assert nets.largest_gap(one[0], several[0]) < 1e-6


@pytest.mark.sampled(4)
@pytest.mark.parametrize("steps_per_call", [1, 3])
@pytest.mark.parametrize("mode", parallel.MODES)
def test_modes_give_the_same_run(mode, steps_per_call):
  here, there = go(6), go(6, mode=mode, steps_per_call=steps_per_call)
  assert nets.largest_gap(here[0], there[0]) < 5e-6
  np.testing.assert_allclose(here[1]["loss"], there[1]["loss"], rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused_before_compiling():
  with pytest.raises(UserError, match="a batch of 8 examples does not divide over 3 devices"):
    go(1, mode="pmap", devices=jax.devices()[:3])


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_hooks_see_finished_steps_and_their_metrics(steps_per_call):
  seen, ticks = [], []
  hooks = [
    Hook(3, lambda step, state, metrics: seen.append(("a", step, int(state.step), len(metrics["loss"])))),
    Hook(5, lambda step, state, metrics: seen.append(("b", step, int(state.step), len(metrics["loss"])))),
  ]
  go(11, hooks=hooks, tick=ticks.append, steps_per_call=steps_per_call)
  first = [("a", 3, 3, 3), ("b", 5, 5, 5), ("a", 6, 6, 3), ("a", 9, 9, 3), ("b", 10, 10, 5)]
  assert seen == [*first, ("a", 11, 11, 2), ("b", 11, 11, 1)]
  assert ticks[-1] == 11 and (steps_per_call > 1 or ticks == list(range(1, 12)))


@pytest.mark.parametrize(("accumulate", "steps_per_call", "traces"), [(1, 1, 1), (2, 1, 1), (1, 4, 2)])
def test_a_step_is_traced_once(accumulate, steps_per_call, traces):
  """Once for all calls and hooks; and once more for the shapes of its metrics where a call has several steps."""
  step, start = setup(accumulate=accumulate)
  chex.clear_trace_counter()
  step = chex.assert_max_traces(step, n=traces)
  hooks, shared = [Hook(3, lambda *_: None)], {"teacher_variables": nets.variables(1), "steps_per_call": steps_per_call}
  state, _ = fit(step, start, get_batch, data(), steps=7, hooks=hooks, **shared)
  assert int(state.step) == 7


@pytest.mark.parametrize("over", ["loss", "grad_norm"])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(over):
  saved = []

  def step(s, batch, teacher, *, axis_name, seed):
    bad = jnp.where(s.step == 6, jnp.nan, 1.0)
    return s.replace(step=s.step + 1), {"loss": jnp.ones(()), "grad_norm": jnp.ones(())} | {over: bad}

  with pytest.raises(UserError, match=f"{over} is nan at step 7; checkpoints of earlier steps are kept"):
    fit(step, setup()[1], get_batch, data(), steps=50, hooks=[Hook(2, lambda done, *_: saved.append(done))])
  assert saved == [2, 4, 6]


def test_a_batch_that_is_masked_as_a_whole_is_named():
  step, fresh = setup()

  def masked(data, step, *, seed, part):
    return {**get_batch(data, step, seed=seed, part=part), "valid": jnp.full((BATCH // part[1],), step != 3)}

  for mode in ("jit", "shard_map"):
    with pytest.raises(
      UserError, match="stopped at step 4: the masks exclude the whole batch: expected 'valid' to keep"
    ):
      fit(step, fresh, masked, data(), steps=6, teacher_variables=nets.variables(1), mode=mode)
    _, history = fit(step, fresh, masked, data(), steps=3, teacher_variables=nets.variables(1), mode=mode)
    np.testing.assert_array_equal(history["examples_left"], [BATCH] * 3)
  eager = masked(data(), 3, seed=0, part=(0, 1))
  keywords = {"step": jnp.int32(0), "aux": {}, "aux_state": {}, "key": jax.random.key(0), "axis_name": None}
  logits = kd.Outputs(jnp.zeros((BATCH, 3)))
  with pytest.raises(UserError, match="the masks exclude the whole batch"):
    nets.distillation()(logits, logits, eager, **keywords)
  with pytest.raises(UserError, match="the masks exclude the whole batch"):
    nets.distillation()(
      logits, logits, {**get_batch(data(), 0, seed=0, part=(0, 1)), "class_mask": jnp.zeros(3, bool)}, **keywords
    )


def test_steps_in_flight_are_bounded(monkeypatch):
  started, unfinished = [], []
  monkeypatch.setattr(loop, "refuse_non_finite", lambda metrics, at: unfinished.append(len(started) - at))

  def run(state, count):
    started.append(count)
    return state.replace(step=state.step + 1), {"loss": np.ones(1), "grad_norm": np.ones(1)}

  loop.drive(run, setup()[1], (), steps=40, in_flight=8)
  assert max(unfinished) == 8 and len(unfinished) == 40


@pytest.mark.sampled(3)
@pytest.mark.parametrize("steps_per_call", [1, 3])
@pytest.mark.parametrize("over", seeds.WAYS)
def test_seeds_at_once_are_the_runs_one_by_one(over, steps_per_call):
  step, _ = setup()
  tx = optim.optimizer("sgd", optim.schedule("cosine", 0.2, 20, warmup=3))
  init, _ = training(nets.student, nets.distillation(), tx, ema=0.9)

  def create(seed):
    noise = jax.random.normal(jax.random.key(seed), (3,))
    variables = nets.variables()
    variables["params"]["last"]["bias"] = noise
    return init(variables)

  chosen = [3, 11]
  shared = {"steps": 6, "steps_per_call": steps_per_call}
  teachers = [nets.variables(1), nets.variables(2)]
  own = {"label": jnp.stack([data()["label"], data()["label"][::-1]])}
  many, history = seeds.fit(
    step,
    seeds.start(create, chosen),
    get_batch,
    data(),
    own=own,
    teacher_variables=seeds.stack(teachers),
    seeds=chosen,
    over=over,
    **shared,
  )
  assert many.step.shape == () and history["loss"].shape == (2, 6)
  for index, seed in enumerate(chosen):
    own_data = {**data(), "label": own["label"][index]}
    alone, losses = fit(
      step, create(jnp.int32(seed)), get_batch, own_data, seed=seed, teacher_variables=teachers[index], **shared
    )
    assert nets.largest_gap(seeds.pick(many, index), alone) < 1e-6
    np.testing.assert_allclose(history["loss"][index], losses["loss"], rtol=1e-5)
  assert nets.largest_gap(seeds.pick(many, 0).params, seeds.pick(many, 1).params) > 1e-2


def test_seeds_name_the_run_that_is_not_finite():
  losses = np.ones((3, 4))
  losses[1, 2] = np.inf
  with pytest.raises(UserError, match="loss is inf at step 13 of run 1"):
    loop.refuse_non_finite({"loss": losses, "grad_norm": np.ones((3, 4))}, 10)
  with pytest.raises(UserError, match="unknown way to run several seeds 'vmp'; did you mean 'vmap'"):
    seeds.batched(lambda *a: a, "vmp")


def test_evaluation_covers_the_split_once():
  images = np.asarray(nets.batch(23)["image"])
  calls = []

  def fn(variables, x):
    calls.append(x.shape)
    return nets.teacher(variables, x)

  got = evaluate.logits(fn, nets.variables(), images, batch_size=10)
  np.testing.assert_allclose(got, nets.teacher(nets.variables(), images), atol=1e-6)
  assert got.shape == (23, 3) and calls == [(10, nets.FEATURES)]
  assert evaluate.logits(fn, nets.variables(), images[:4]).shape == (4, 3)
  with pytest.raises(UserError, match="no images"):
    evaluate.logits(fn, nets.variables(), images[:0])


def test_accuracy_and_agreement_by_hand():
  a, b = np.eye(4, 3), np.eye(4, 3)[[0, 1, 0, 3]]
  assert evaluate.accuracy(a, np.array([0, 1, 2, 2])) == 0.75
  assert evaluate.agreement(a, b) == 0.75
  others = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
  assert [evaluate.agreement(a, others, k) for k in (1, 2, 3)] == [0.5, 0.75, 1.0]


def test_divergence_and_calibration_by_hand():
  # p = (3/4, 1/4), q = (1/2, 1/2): KL = log 2 - H(p).
  p, q = np.log([[3.0, 1.0]]), np.zeros((1, 2))
  np.testing.assert_allclose(evaluate.divergence(q, p), 0.75 * np.log(1.5) + 0.25 * np.log(0.5))
  assert evaluate.divergence(p + 5, p) == pytest.approx(0, abs=1e-12)
  # Confidence 3/4 four times, right twice: off by 1/4. Confidence 1/2 once, right: off by 1/2.
  logits = np.concatenate([np.repeat(p, 4, 0), q])
  labels = np.array([0, 0, 1, 1, 0])
  np.testing.assert_allclose(evaluate.calibration_error(logits, labels), (4 * 0.25 + 0.5) / 5)
