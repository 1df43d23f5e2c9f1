"""A student and its teacher in one step against two optax loops that take turns, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd
from leanax import engine, graph
from leanax.core.errors import UserError
from leanax.engine.store import checkpoint
from leanax.engine.train import forward, together
from tests.engine import nets

TX, TEACHER_TX = optax.sgd(0.1, momentum=0.9), optax.sgd(0.02)


def start(**kwargs):
  own = engine.training(nets.student, nets.supervised(), TEACHER_TX).init(nets.variables(1, hidden=16))
  student = engine.training(nets.student, nets.distillation(), TX, teacher=together.current, **kwargs)
  return together.start(student.init(nets.variables(0)), own)


def steps(objective=None, teacher=nets.student, **kwargs):
  student = engine.training(nets.student, objective or nets.distillation(), TX, teacher=together.current, **kwargs)
  return together.together(student.step, engine.training(teacher, nets.supervised(), TEACHER_TX).step, teacher)


def train(step, state, count, first=0, mode="jit"):
  run = engine.parallelize(step, mode)
  for i in range(first, first + count):
    state, metrics = run(state, nets.batch(8, i))
  return state, metrics


def squared(weight):
  """The example of the field: the squared differences of the logits, summed over classes and the batch of 8."""
  terms = [kd.Term("hard", kd.hard_labels()), kd.Term("l2", kd.logit_l2(), 2 * 8 * weight)]
  return kd.weighted(terms)


def hard(logits, label):
  return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1))


def soft(z, t, label):
  gap = jnp.sum(jax.nn.softmax(t / 2) * (jax.nn.log_softmax(t / 2) - jax.nn.log_softmax(z / 2)), -1)
  return 0.3 * hard(z, label) + 0.7 * 4 * jnp.mean(gap)


def summed(z, t, label):
  return hard(z, label) + 0.1 * jnp.sum((z - t) ** 2)


def test_schedules_of_the_teacher_count_the_same_steps():
  rising = kd.weighted([kd.Term("hard", kd.hard_labels(), lambda step: 1.0 + jnp.float32(step))])
  student = engine.training(nets.student, nets.distillation(), TX, teacher=together.current)
  both = together.together(student.step, engine.training(nets.student, rising, TEACHER_TX).step, nets.student)
  state = start()
  for count in (1, 2):
    state, metrics = train(both, state, 1)
    np.testing.assert_allclose(metrics["teacher/loss"] / metrics["teacher/hard"], count, rtol=1e-6)


@pytest.mark.parametrize(("objective", "loss"), [(nets.distillation(), soft), (squared(0.1), summed)])
def test_it_is_two_optax_loops_that_take_turns(objective, loss):
  """With batch norms, in training mode; the teacher's gradient is that of its labels alone."""
  got, metrics = train(steps(objective), start(), 4)

  def minimised(params, stats, batch, of_logits):
    logits, state = nets.mlp({"params": params, **stats}, batch["image"], train=True, key=None)
    return of_logits(logits), state

  @jax.jit
  def turn(student, teacher, batch):
    (params, stats, opt_state), (own, own_stats, own_opt) = student, teacher
    teacher_logits = nets.mlp({"params": own, **own_stats}, batch["image"], train=True, key=None)[0]
    grads, stats = jax.grad(minimised, has_aux=True)(
      params, stats, batch, lambda z: loss(z, teacher_logits, batch["label"])
    )
    updates, opt_state = TX.update(grads, opt_state, params)
    own_grads, own_stats = jax.grad(minimised, has_aux=True)(own, own_stats, batch, lambda z: hard(z, batch["label"]))
    own_updates, own_opt = TEACHER_TX.update(own_grads, own_opt, own)
    moved = optax.apply_updates(params, updates), stats, opt_state
    return moved, (optax.apply_updates(own, own_updates), own_stats, own_opt)

  def beginning(variables, tx):
    return variables["params"], {"batch_stats": variables["batch_stats"]}, tx.init(variables["params"])

  student, teacher = beginning(nets.variables(0), TX), beginning(nets.variables(1, hidden=16), TEACHER_TX)
  for i in range(4):
    student, teacher = turn(student, teacher, nets.batch(8, i))
  chex.assert_trees_all_close((got.params, got.model_state), student[:2], rtol=1e-4, atol=1e-5)
  chex.assert_trees_all_close((got.teacher.params, got.teacher.model_state), teacher[:2], rtol=1e-4, atol=1e-5)
  assert {"loss", "teacher/loss", "teacher/accuracy"} <= set(metrics) and int(got.step) == 4


def test_the_weight_of_a_sum_over_the_batch():
  """A sum over 64 examples and their classes times 0.1 is 6.4 times the mean of the examples' sums."""
  z, t = np.random.default_rng(0).normal(size=(2, 64, 10)).astype(np.float32)
  objective = kd.weighted([kd.Term("l2", kd.logit_l2(), 12.8)])  # `logit_l2` is half of an example's sum
  np.testing.assert_allclose(objective(z, t, {})[0], 0.1 * np.sum((z - t) ** 2), rtol=1e-5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["pmap", "mesh", "shard_map"])
def test_devices_give_the_numbers_of_one(mode):
  def over(v, q, s, x, *, train, key, axis_name):
    logits, state = nets.mlp(v, x, train=train, key=key, axis_name=axis_name)
    return logits, state, s

  step = steps(teacher=over)
  want, _ = train(step, start(), 2)
  got, _ = train(step, start(), 2, mode=mode)
  chex.assert_trees_all_close(jax.device_get(got), jax.device_get(want), rtol=1e-4, atol=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
  step = steps(ema=0.9)
  want, _ = train(step, start(ema=0.9), 4)
  half, _ = train(step, start(ema=0.9), 2)
  with checkpoint.Checkpoints(tmp_path) as kept:
    kept.save(2, half)
  with checkpoint.Checkpoints(tmp_path) as kept:
    back = kept.restore(start(ema=0.9)).state
  got, _ = train(step, back, 2, first=2)
  chex.assert_trees_all_equal(jax.device_get(got), jax.device_get(want))


def test_a_loss_on_activations_reads_the_teacher_that_moves():
  tap = "first/kernel:out"
  objective = kd.weighted([kd.Term("sp", kd.sp(student=tap, teacher=tap))])
  own = forward.tapped(nets.student, objective.teacher)
  tapped = forward.tapped(nets.student, objective.student)
  student = engine.training(tapped, objective, TX, teacher=together.current).step
  both = together.together(student, engine.training(nets.student, nets.supervised(), TEACHER_TX).step, own)
  _, metrics = train(both, start(), 1)
  run = lambda v, x: nets.mlp(v, x, train=True, key=None)[0]
  z, t = (
    kd.Outputs(*graph.taps(run, [tap])(v, nets.batch(8, 0)["image"]))
    for v in (nets.variables(0), nets.variables(1, hidden=16))
  )
  np.testing.assert_allclose(metrics["sp"], jnp.mean(objective.terms[0].loss(z, t).per_example), rtol=1e-5)


def test_the_norm_of_a_term_has_the_teacher_of_the_state():
  norm = together.with_teacher(
    engine.term_norm(nets.student, nets.distillation(), teacher=together.current), nets.student
  )
  state, batch = start(), nets.batch()
  teacher_logits = nets.mlp(state.teacher.variables, batch["image"], train=True, key=None)[0]
  given = engine.term_norm(nets.student, nets.distillation())
  share = jnp.array([0.0, 1.0])
  want = given(state, batch | {"teacher_logits": teacher_logits}, share=share)
  np.testing.assert_allclose(norm(state, batch, share=share), want, rtol=1e-5)


def test_mistakes_are_refused():
  step, batch = steps(), nets.batch()
  with pytest.raises(UserError, match="the state holds none; expected together.start"):
    step(start().replace(teacher=None), batch)
  with pytest.raises(UserError, match="the batch holds 'teacher_logits' and there is a teacher to run"):
    step(start(), batch | {"teacher_logits": jnp.zeros((8, 3))})
  with pytest.raises(UserError, match="expected no teacher_variables beside it"):
    step(start(), batch, nets.variables(1))
