"""Networks with several outputs: which of them a loss and a metric read; ensembles, whose mean depends on the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import kd
from kd import Term, weighted
from leanax import graph
from leanax.core.errors import UserError
from leanax.engine.train import evaluate
from leanax.engine.train.forward import plain, tapped
from leanax.engine.train.step import training
from tests.engine import nets
from tests.numbers import array


def detector(variables, x):
  """{"scores": (batch, 3), "boxes": (batch, 4)} of one hidden layer."""
  p = variables["params"]
  h = jax.nn.relu(x @ p["body"]["kernel"])
  return {"scores": h @ p["scores"]["kernel"], "boxes": h @ p["boxes"]["kernel"]}


def weights(seed, hidden=8):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: {"kernel": array(rng.normal(size=shape) * 0.5, jnp.float32)}
  return {"params": {"body": draw(4, hidden), "scores": draw(hidden, 3), "boxes": draw(hidden, 4)}}


HINT = kd.fitnet(student="body/kernel:out", teacher="body/kernel:out")
TERMS = (
  Term("soft", kd.hinton(2.0), 1.0, output="scores"),
  Term("boxes", kd.logit_l2(), 0.5, output="boxes"),
  Term("hint", HINT, 1.0),
)


@jax.jit
def outputs(variables, x):
  return kd.Outputs(*graph.taps(detector, HINT.taps.student)(variables, x))


def numbers(student, teacher, x):
  """The first two terms in float64."""
  relu = lambda v: np.maximum(np.float64(x) @ np.float64(v["params"]["body"]["kernel"]), 0)
  s, t = ({k: relu(v) @ np.float64(v["params"][k]["kernel"]) for k in ("scores", "boxes")} for v in (student, teacher))
  p, q = (scipy.special.softmax(one["scores"] / 2, -1) for one in (t, s))
  return 4 * scipy.special.rel_entr(p, q).sum(-1).mean(), s, t


def test_a_custom_loop_distils_a_model_with_two_outputs():
  student, teacher, batch = weights(0), weights(1, 12), nets.batch()
  objective = weighted(TERMS)
  teacher_outputs = outputs(teacher, batch["image"])
  aux, aux_state = objective.init(jax.random.key(0), outputs(student, batch["image"]), teacher_outputs)
  tx = optax.sgd(0.05)
  trained = {"params": student["params"], "aux": aux}
  keywords = {"aux_state": aux_state, "key": jax.random.key(0), "axis_name": None, "step": jnp.int32(0)}

  @jax.jit
  def update(trained, opt_state):
    def loss(trained):
      student_outputs = outputs({"params": trained["params"]}, batch["image"])
      value, _, logs = objective(student_outputs, teacher_outputs, batch, aux=trained["aux"], **keywords)
      return value, logs

    grads, logs = jax.grad(loss, has_aux=True)(trained)
    updates, opt_state = tx.update(grads, opt_state, trained)
    return optax.apply_updates(trained, updates), opt_state, logs

  opt_state, history = tx.init(trained), []
  for _ in range(100):
    trained, opt_state, logs = update(trained, opt_state)
    history.append(logs)
  soft, student_arrays, teacher_arrays = numbers(student, teacher, batch["image"])
  np.testing.assert_allclose(history[0]["soft"], soft, rtol=1e-5)
  np.testing.assert_allclose(
    history[0]["boxes"], kd.logit_l2()(student_arrays["boxes"], teacher_arrays["boxes"])[0].mean(), rtol=1e-5
  )
  assert all(float(history[-1][name]) < 0.9 * float(history[0][name]) for name in ("soft", "boxes", "hint"))


def two_outputs(variables, x, *, train, key):
  return detector(variables, x), {}


def one_step(terms, given=None, **kwargs):
  init, step = training(tapped(plain(two_outputs), ()), weighted(terms, **kwargs), optax.sgd(0.1))
  teacher_outputs = detector(weights(1), nets.batch()["image"]) if given is None else given
  return jax.jit(step)(init(weights(0)), nets.batch() | {"teacher_logits": teacher_outputs})


def test_metrics_read_the_output_that_the_terms_name():
  hard = Term("hard", kd.hard_labels(), output="scores")
  batch, scores = nets.batch(), detector(weights(0), nets.batch()["image"])["scores"]
  expected = float(np.mean(np.argmax(scores, -1) == batch["label"]))
  assert float(one_step([hard])[1]["accuracy"]) == expected
  assert "accuracy" not in one_step([hard, TERMS[1]])[1]  # of two outputs
  assert float(one_step([hard, TERMS[1]], output="scores")[1]["accuracy"]) == expected
  alone = detector(weights(1), batch["image"])["scores"]
  np.testing.assert_array_equal(one_step(TERMS[:1])[1]["soft"], one_step(TERMS[:1], alone)[1]["soft"])


def test_outputs_are_named_in_one_sentence():
  with pytest.raises(
    UserError, match="term 'soft' reads logits, and the student has several outputs, 'boxes', 'scores'"
  ):
    one_step([Term("soft", kd.hinton())])
  with pytest.raises(UserError, match="unknown output of term 'soft'.*'score'.*scores"):
    one_step([Term("soft", kd.hinton(), output="score")])
  with pytest.raises(UserError, match="term 'soft' reads the output 'scores', and the network has one output"):
    init, step = training(nets.smooth, weighted(TERMS[:1]), optax.sgd(0.1))
    step(init(nets.variables()), nets.batch() | {"teacher_logits": jnp.zeros((8, 3))})
  with pytest.raises(UserError, match="output of term 'soft' is 1; expected a name"):
    weighted([Term("soft", kd.hinton(), output=1)])
  with pytest.raises(UserError, match="ignore_label of term 'hard' is 'no'; expected a whole number"):
    weighted([Term("hard", kd.hard_labels(), ignore_label="no")])


def test_all_outputs_are_evaluated():
  x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
  found, expected = evaluate.logits(detector, weights(0), x, batch_size=3), detector(weights(0), x)
  assert set(found) == {"boxes", "scores"}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_tuples_have_numbers_for_names():
  pair = kd.Outputs((jnp.ones((2, 3)), {"a": jnp.zeros((2, 4))}))
  objective = weighted([Term("x", kd.logit_l2(), output="1/a")])
  keywords = {"aux": {}, "aux_state": {}, "key": jax.random.key(0), "axis_name": None, "step": jnp.int32(0)}
  assert float(objective(pair, pair, {}, **keywords)[0]) == 0.0


def test_a_student_of_one_output_reads_one_output_of_its_teacher():
  student, teacher, batch = weights(0), weights(1), nets.batch()
  apply = lambda v, x, **_: (detector(v, x)["scores"], {})
  for output, message in (("scores", ""), ("score", "unknown output of term 'soft'"), ("", "the teacher has several")):
    terms = [Term("soft", kd.hinton(2.0), output=output), Term("hard", kd.hard_labels())]
    init, step = training(plain(apply), weighted(terms), optax.sgd(0.1), teacher=detector)
    s, step = init(student), jax.jit(step)
    if message:
      with pytest.raises(UserError, match=message):
        step(s, batch, teacher)
      continue
    metrics = step(s, batch, teacher)[1]
    np.testing.assert_allclose(metrics["soft"], numbers(student, teacher, batch["image"])[0], rtol=1e-5)
    assert "accuracy" in metrics
  with pytest.raises(UserError, match="the network has one output, an array; expected no name"):
    weighted([terms[0]._replace(output="scores")])(
      kd.Outputs(jnp.ones((2, 3))),
      kd.Outputs(jnp.ones((2, 3))),
      {},
      step=0,
      aux={},
      aux_state={},
      key=jax.random.key(0),
      axis_name=None,
    )


def test_evaluation_counts_positions_that_have_a_label():
  logits = np.float32([[[0, 1], [2, 0], [0, 5]], [[1, 0], [0, 1], [0, 1]]])
  labels = np.int32([[1, 1, -1], [0, 255, 1]])
  assert evaluate.accuracy(logits, labels, 255) == 0.75
  flat = evaluate.calibration_error(logits.reshape(-1, 2)[[0, 1, 3, 5]], labels.reshape(-1)[[0, 1, 3, 5]])
  assert evaluate.calibration_error(logits, labels, ignore_label=255) == flat
  for wrong in (labels[:, :1], labels.astype(np.float32), np.eye(2)[[0, 1]]):
    with pytest.raises(UserError, match="labels are .* expected whole numbers of shape"):
      evaluate.accuracy(logits, wrong)
  with pytest.raises(UserError, match="there is no label to compare with"):
    evaluate.accuracy(logits, np.full((2, 3), -1))


# Two teachers that disagree at one temperature: logits, and Hinton's loss against a student at T = 4 in float64.
DISAGREE = np.array([[[9.0, 1.0, -4.0], [-2.0, 6.0, 3.0]]])  # (batch, members, classes)


def test_numbers_about_positions_and_of_one_logit():
  """Also where there are as many positions as classes."""
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 50, 4, 4))
  assert evaluate.agreement(a, b) == np.mean(a.argmax(-1) == b.argmax(-1))
  second = np.sort(b, -1)[..., -2:-1]
  picked = np.take_along_axis(b, a.argmax(-1)[..., None], -1)
  assert evaluate.agreement(a, b, 2) == np.mean(picked >= second)
  p, q = (scipy.special.softmax(x, -1) for x in (b, a))
  np.testing.assert_allclose(evaluate.divergence(a, b), scipy.special.rel_entr(p, q).sum(-1).mean(), rtol=1e-12)
  none = np.where(np.arange(4) == 1, -np.inf, 0.0)
  kept = [0, 2, 3]
  assert evaluate.divergence(a + none, b + none) == pytest.approx(evaluate.divergence(a[..., kept], b[..., kept]))
  assert evaluate.divergence(a + none, b) == np.inf

  z, y = np.array([[-2.0], [0.5], [3.0], [-0.1]]), np.array([0, 1, 0, 1])
  assert evaluate.accuracy(z, y) == 0.5
  assert evaluate.agreement(z, -z) == 0.0 and evaluate.agreement(z, 2 * z) == 1.0
  on = scipy.special.expit(z[:, 0])
  kl = scipy.special.rel_entr(on[::-1], on) + scipy.special.rel_entr(1 - on[::-1], 1 - on)
  np.testing.assert_allclose(evaluate.divergence(z, z[::-1]), kl.mean(), rtol=1e-12)
  sure = np.maximum(on, 1 - on)
  np.testing.assert_allclose(evaluate.calibration_error(z, y, bins=1), abs(sure.mean() - 0.5), rtol=1e-12)


def test_logits_that_cannot_be_compared_are_refused():
  a, y = np.zeros((4, 3)), np.zeros(4, int)
  for of in (evaluate.agreement, evaluate.divergence):
    for other in (a[:1], a[:, :1], a[None]):
      with pytest.raises(UserError, match="are compared; expected one shape"):
        of(a, other)
    with pytest.raises(UserError, match="logits are NaN"):
      of(a * np.nan, a)
  with pytest.raises(UserError, match="logits are NaN"):
    evaluate.accuracy(a * np.nan, y)
  with pytest.raises(UserError, match="logits are dict; expected arrays"):
    evaluate.accuracy({"a": a}, y)
  with pytest.raises(UserError, match="bins is 0"):
    evaluate.calibration_error(a, y, bins=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_an_ensemble_is_averaged_at_the_temperature(temperature):
  ensemble = kd.Outputs(jnp.zeros((1, 3)), members=jnp.asarray(DISAGREE, jnp.float32))
  expected = scipy.special.softmax(DISAGREE / temperature, -1).mean(1)

  @jax.jit
  def probabilities(ensemble, mask):
    mean, masked = kd.teacher_at(ensemble, temperature), kd.teacher_at(ensemble, temperature, mask)[:, :2]
    return jax.nn.softmax(mean / temperature), jax.nn.softmax(masked / temperature)

  found, masked = probabilities(ensemble, np.array([True, True, False]))
  np.testing.assert_allclose(found, expected, atol=1e-6)
  few = scipy.special.softmax(DISAGREE[..., :2] / temperature, -1).mean(1)
  np.testing.assert_allclose(masked, few, atol=1e-6)
  alone = jnp.ones((1, 3))
  assert kd.teacher_at(alone, temperature) is alone


def test_an_ensemble_of_outputs_that_stand_alone():
  z = np.random.default_rng(0).normal(size=(4, 3, 2)) * 3  # (batch, members, outputs)
  student = np.random.default_rng(1).normal(size=(4, 2))
  ensemble = kd.Outputs(jnp.zeros((4, 2)), members=jnp.asarray(z, jnp.float32))
  of = lambda loss: jax.jit(lambda s, ensemble: loss(s, ensemble)[0])(student.astype(np.float32), ensemble)
  p, q = scipy.special.expit(z / 4).mean(1), scipy.special.expit(student / 4)
  both = scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)
  np.testing.assert_allclose(of(kd.bernoulli_kl(4.0)), 16 * both.sum(-1), rtol=1e-4)
  np.testing.assert_allclose(of(kd.squared_error()), ((student - z.mean(1)) ** 2).sum(-1), rtol=1e-5)


def test_members_of_positions_and_excluded_classes():
  z = np.random.default_rng(0).normal(size=(2, 3, 5, 4))  # (batch, members, positions, classes)
  z[..., 1] = -np.inf
  mean = kd.teacher_at(kd.Outputs(jnp.zeros((2, 5, 4)), members=jnp.asarray(z, jnp.float32)), 3.0)
  np.testing.assert_allclose(jax.nn.softmax(mean / 3), scipy.special.softmax(z / 3, -1).mean(1), atol=1e-6)


AT_FOUR = {
  "hinton": (kd.hinton, {"temperature": 4.0}),
  "soft_labels": (kd.soft_labels, {"temperature": 4.0}),
  "dkd": (kd.dkd, {"temperature": 4.0}),
  "jsd": (kd.jsd, {"temperature": 4.0}),
  "reverse_kl": (kd.reverse_kl, {"temperature": 4.0}),
  "skew_kl": (kd.skew_kl, {"temperature": 4.0}),
  "total_variation": (kd.total_variation, {"temperature": 4.0}),
  "topk": (kd.topk, {"temperature": 4.0, "k": 2}),
  "dist": (kd.dist, {"tau": 4.0}),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", list(AT_FOUR))
def test_losses_read_an_ensemble_at_their_temperature(name):
  """As they read one teacher whose softmax at the temperature is the mean of the members'."""
  make, keywords = AT_FOUR[name]
  z = np.concatenate([DISAGREE, DISAGREE[:, ::-1, ::-1]])
  ensemble = kd.Outputs(jnp.zeros((2, 3)), members=jnp.asarray(z, jnp.float32))
  one = jnp.asarray(4 * np.log(scipy.special.softmax(z / 4, -1).mean(1)), jnp.float32)
  student, batch = jnp.asarray([[0.5, -1.0, 2.0], [1.0, 0.0, -1.0]]), {"label": jnp.asarray([0, 2])}
  loss = make(**keywords)
  run = jax.jit(lambda student, teachers, batch: [loss(student, teacher, batch)[0] for teacher in teachers])
  read, expected = run(student, (ensemble, one), batch)
  np.testing.assert_allclose(read, expected, rtol=1e-5)


def test_losses_of_two_temperatures_read_an_ensemble_at_each():
  z, student = (np.repeat(x, 2, axis=0) for x in (DISAGREE, np.array([[0.5, -1.0, 2.0]])))  # two like examples
  batch = {"label": jnp.asarray([1, 1])}
  p = {t: scipy.special.softmax(z / t, -1).mean(1)[0] for t in (1, 2, 4)}
  q = {t: scipy.special.softmax(student / t, -1)[0] for t in (1, 2, 4)}
  ensemble = kd.Outputs(jnp.log(jnp.asarray([p[1]] * 2, jnp.float32)), members=jnp.asarray(z, jnp.float32))
  values = lambda loss, **more: jax.jit(lambda s: loss(s, ensemble, batch, **more)[0])(student.astype(np.float32))
  value = lambda loss: float(np.asarray(values(loss))[0])
  without = lambda x: np.array([x[0], x[2]]) / (x[0] + x[2])
  nkd = -p[1][1] * np.log(q[1][1]) - 1.5 * 16 * np.sum(without(p[4]) * np.log(without(q[4])))
  np.testing.assert_allclose(value(kd.nkd(1.5, 4.0)), nkd, rtol=1e-5)
  weight = 1 - np.exp(-np.log(q[1][1]) / (np.log(p[1][1]) - 1e-7))
  np.testing.assert_allclose(value(kd.wsld(4.0)), -weight * 16 * np.sum(p[4] * np.log(q[4])), rtol=1e-5)
  each = [t**2 * scipy.special.rel_entr(p[t], q[t]).sum() for t in (2, 4)]
  np.testing.assert_allclose(value(kd.mlkd((2.0, 4.0), batch_gram=0.0, class_gram=0.0)), sum(each), rtol=1e-5)
  curriculum = kd.ctkd()
  aux, _ = curriculum.init(jax.random.key(0), kd.Outputs(jnp.asarray(student, jnp.float32)), ensemble, None)
  heat = 1 + 20 / (1 + np.exp(-1.0))
  warm = scipy.special.rel_entr(scipy.special.softmax(z / heat, -1).mean(1), scipy.special.softmax(student / heat, -1))
  np.testing.assert_allclose(values(curriculum, aux=aux), heat**2 * warm.sum(-1), rtol=2e-5)


def test_only_the_read_outputs_of_a_teacher_have_to_be_finite():
  """Its other outputs, masked classes and examples may hold anything; an activation is named, too."""
  batch = nets.batch()
  found = detector(weights(1), batch["image"])
  objective = weighted(TERMS[:1])
  keywords = {"aux": {}, "aux_state": {}, "key": jax.random.key(0), "axis_name": None, "step": jnp.int32(0)}
  of = jax.jit(lambda given, more: objective(outputs(weights(0), batch["image"]), given, batch | more, **keywords)[2])
  count = lambda given, **more: float(of(given, more)["teacher_not_finite"])
  bad = found | {"boxes": found["boxes"] * jnp.nan}
  assert count(found) == count(bad) == 0
  assert count(found | {"scores": found["scores"].at[1:3, 0].set(jnp.inf)}) == 2
  first = found | {"scores": found["scores"].at[:, 0].set(jnp.nan)}
  assert count(first, class_mask=jnp.asarray([False, True, True])) == 0
  assert count(first, valid=jnp.arange(8) < 3) == 3
  members = jnp.stack([found["scores"], found["scores"].at[5].set(jnp.nan)], 1)
  assert count(kd.Outputs(found["scores"], members=members)) == 1
  hints = weighted(TERMS[2:])
  student_outputs, teacher_outputs = outputs(weights(0), batch["image"]), outputs(weights(1), batch["image"])
  aux, _ = hints.init(jax.random.key(0), student_outputs, teacher_outputs)
  broken = teacher_outputs._replace(taps={name: x.at[4].set(jnp.nan) for name, x in teacher_outputs.taps.items()})
  run = jax.jit(lambda teacher: hints(student_outputs, teacher, batch, **keywords | {"aux": aux})[2])
  for teacher, expected in ((teacher_outputs, 0), (broken, 1)):
    assert run(teacher)["teacher_not_finite"] == expected
