"""Means over what counts: the same number however a batch is split over devices, or into micro-batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd
from kd import Term, weighted
from kd.counting import counted
from leanax import engine
from leanax.core.errors import UserError
from leanax.engine.train import loop, metrics, micro_batches, optim
from leanax.engine.train.forward import plain
from leanax.engine.train.parallel import parallelize
from leanax.engine.train.step import training
from tests.engine import nets

LABELS = np.array([0, -1, -1, -1, 1, 2, 0, 1], np.int32)
VALID = np.array([True, True, True, True, False, True, True, False])
# Several terms of different masks; a weight on a schedule of updates.
TERMS = (
  Term("hard", kd.hard_labels(), lambda step: 1.0 + step.astype(jnp.float32), mask="labelled"),
  Term("soft", kd.hinton(2.0), 0.5),
  Term("rest", kd.logit_l2(), 0.1, mask="unlabelled"),
)


def linear(variables, x, *, train, key):
  return x @ variables["params"]["kernel"], {}


def of_examples(order, micro, valid=None, class_mask=None):
  """`get_batch` that shows these rows of 8 examples, `micro` at once."""
  rng = np.random.default_rng(0)
  data = {
    "image": rng.normal(size=(8, 4)).astype(np.float32),
    "label": LABELS,
    "teacher_logits": rng.normal(size=(8, 3)).astype(np.float32),
  }
  data |= {} if valid is None else {"valid": valid}
  data |= {} if class_mask is None else {"class_mask": class_mask}
  data = {key: jnp.asarray(value[order]) for key, value in data.items()}

  def get_batch(data, step, *, seed, part):
    index, parts = part
    size = micro // parts
    begin = (step % (8 // micro)) * micro + index * size
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, begin, size), data)

  return get_batch, data


def trained(accumulate, tx, *, terms=TERMS, mode="jit", devices=None, updates=3, **masks):
  get_batch, data = of_examples(np.arange(8), 8 // accumulate, **masks)
  init, step = training(plain(linear), weighted(terms), tx, accumulate=accumulate, ema=0.5)
  kernel = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
  start = init({"params": {"kernel": jnp.asarray(kernel)}})
  return engine.fit(step, start, get_batch, data, steps=updates, mode=mode, devices=devices, steps_per_call=1)


def equal(one, other):
  (s, history), (t, parts) = one, other
  for name in ("params", "ema"):
    assert nets.largest_gap(getattr(s, name), getattr(t, name)) < 2e-6, name
  assert history.keys() == parts.keys() and len(history["loss"]) == len(parts["loss"]) == int(s.step) == int(t.step)
  for name in history:
    np.testing.assert_allclose(parts[name], history[name], rtol=2e-5, err_msg=name)


@functools.cache
def clipped(accumulate, padded):
  tx = optim.optimizer("sgd", 0.1, momentum=0.9, clip_norm=1.0)
  return trained(accumulate, tx, **({"valid": VALID} if padded else {}))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("padded", [False, True], ids=["labels", "padding"])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_are_the_batch(padded, accumulate):
  equal(clipped(1, padded), clipped(accumulate, padded))


def test_the_case_by_hand():
  """Labels [0, -1, -1, -1 | 1, 2, 0, 1]: the gradient is the mean over five examples, not of one and of four."""
  _, data = of_examples(np.arange(8), 4)
  s, _ = trained(2, optax.sgd(1.0), terms=[Term("hard", kd.hard_labels(), mask="labelled")], updates=1)
  kernel = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32).astype(np.float64)
  x, known = np.float64(data["image"]), LABELS >= 0
  p = np.exp(x @ kernel)
  p /= p.sum(-1, keepdims=True)
  gap = (p - np.eye(3)[LABELS])[known]
  np.testing.assert_allclose(s.params["kernel"], kernel - x[known].T @ gap / 5, atol=2e-6)


@functools.cache
def whole():
  return trained(1, optax.sgd(0.1))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["pmap", "shard_map", "mesh"])
def test_micro_batches_over_devices_are_the_batch(mode):
  equal(whole(), trained(2, optax.sgd(0.1), mode=mode, devices=jax.local_devices()[:2]))


def test_the_task_gradient_of_dot_is_of_the_batch():
  tx = optim.optimizer("dot", 0.1)
  equal(trained(1, tx), trained(2, tx))


def test_classes_that_do_not_count_are_masked_alike():
  terms = [Term("hard", kd.hard_labels(), mask="labelled"), Term("soft", kd.hinton(2.0), 0.5)]
  mask = np.ones((8, 3), bool)
  mask[3] = False  # an example without any class
  tx = optax.sgd(0.1)
  whole, parts = (trained(k, tx, terms=terms, class_mask=mask) for k in (1, 2))
  assert whole[1]["examples_left"][0] == 7
  equal(whole, parts)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("mode", ["jit", "pmap", "shard_map", "mesh"])
def test_a_batch_of_arrays_is_split_in_pieces(mode):
  """The same update as from a function that makes each micro-batch; class masks of all examples are not split."""
  _, data = of_examples(np.arange(8), 4, valid=VALID)
  mask = jnp.array([True, True, False])
  data |= {"label": data["label"] % 2, "class_mask": mask if mode in ("jit", "pmap") else mask[None]}
  init, step = training(plain(linear), weighted([TERMS[0], Term("soft", kd.hinton(2.0))]), optax.sgd(1.0), accumulate=2)
  start = init({"params": {"kernel": jnp.ones((4, 3))}})
  got, metrics = parallelize(step, mode, jax.local_devices()[:2])(start, data)
  part = lambda x, k: jax.lax.dynamic_slice_in_dim(x, 4 * k, 4)
  micro = lambda data, k: {key: x if key == "class_mask" else part(x, k) for key, x in data.items()}
  want, expected = jax.jit(lambda s, data: step(s, lambda k: micro(data, k)))(start, data)
  assert nets.largest_gap(got.params, want.params) < 1e-6
  np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)


def test_batches_that_make_no_update():
  step = training(plain(linear), weighted(TERMS[:1]), optax.sgd(1.0), accumulate=3).step
  start = training(plain(linear), weighted(TERMS[:1]), optax.sgd(1.0)).init({"params": {"kernel": jnp.ones((4, 3))}})
  batch = of_examples(np.arange(8), 8)[1]
  with pytest.raises(UserError, match="a batch of 8 examples does not divide into 3 micro-batches of equal size"):
    step(start, batch)
  with pytest.raises(UserError, match=r"the batch's 'label' is of shape \(8,\), and its 'image' has 6 examples"):
    step(start, {**batch, "image": batch["image"][:6]})
  with pytest.raises(UserError, match="the batch is a tuple; expected {'image'"):
    step(start, lambda k: (batch["image"], batch["label"]))


def test_images_of_the_other_micro_batches_are_not_computed():
  """The pass that counts reads labels only: the compiled step computes the images of one micro-batch at a time."""
  get_batch, data = of_examples(np.arange(8), 2)

  def costly(data, index, *, seed, part):
    batch = get_batch(data, index, seed=seed, part=part)
    return batch | {"image": jnp.cos(jnp.sin(batch["image"]))}

  def cosines(accumulate):
    init, step = training(plain(linear), weighted(TERMS), optax.sgd(1.0), accumulate=accumulate)
    start = init({"params": {"kernel": jnp.ones((4, 3))}})
    run = jax.jit(lambda s, data: step(s, lambda k: costly(data, k, seed=0, part=(0, 1))))
    return run.lower(start, data).compile().as_text().count(" cosine(")

  assert cosines(4) == cosines(1) > 0


def test_masks_over_positions():
  """(batch, positions): numbers per position are divided by the positions that count, on all devices together."""
  labels = jnp.asarray([[0, 255, -1], [1, 2, 255]])
  numbers = jnp.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(counted({"label": labels}, "labelled", 255), (labels >= 0) & (labels != 255))
  np.testing.assert_array_equal(counted({"label": labels}, "unlabelled", 255), labels == -1)
  np.testing.assert_array_equal(counted({"label": labels}, "all", 255), labels != 255)
  assert counted({"label": labels}, "all") is None
  valid = jnp.asarray([True, False])
  only = counted({"label": labels, "valid": valid}, "labelled", 255)
  np.testing.assert_array_equal(only, [[True, False, False], [False] * 3])
  assert float(kd.batch_mean(numbers, labels >= 0, None)) == np.float32(2.6)
  assert float(kd.batch_mean(numbers, valid, None)) == 1.0
  assert float(kd.batch_mean(jnp.asarray([1.0, 3.0]), only, None)) == 1.0
  part = lambda x, v: kd.batch_mean(x, v, "d")
  parts = jax.vmap(part, axis_name="d")(numbers[:, None], (labels >= 0)[:, None])
  np.testing.assert_allclose(parts.mean(), np.mean([0, 1, 3, 4, 5]), rtol=1e-6)
  ones = jnp.ones((4, 300), jnp.bfloat16)
  assert float(kd.batch_mean(ones, ones > 0, None)) == 1.0


@pytest.mark.parametrize(
  "valid",
  [jnp.ones(8), jnp.ones((), bool), jnp.ones(8, jnp.int32), [True]],
  ids=["floats", "scalar", "integers", "list"],
)
def test_masks_are_bools_over_examples(valid):
  with pytest.raises(UserError, match="'valid' is .* expected bools"):
    counted({"valid": valid}, "all")
  with pytest.raises(UserError, match="expected the same leading axes"):
    kd.batch_mean(jnp.ones(8), jnp.ones(4, bool), None)


def test_masked_examples_have_exactly_no_gradient():
  """Whatever a loss does there: a NaN of padded pixels, of a root at 0, of a label that is no class."""

  def rooted(student, teacher, context):  # the gradient of a root at 0 is infinite
    return kd.LossOut(jnp.sqrt(jnp.sum((student.logits - student.logits[:, :1]) ** 2, -1) * context.batch["scale"]))

  terms = [
    Term("rooted", kd.Loss("rooted", rooted, needs_teacher=False)),
    Term("hard", kd.hard_labels(), mask="labelled"),
  ]
  batch = {
    "image": jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32).at[2].set(jnp.nan),
    "label": jnp.asarray([0, 1, 77, -1]),
    "valid": jnp.asarray([True, True, False, False]),
    "scale": jnp.asarray([1.0, 1.0, 0.0, jnp.nan]),
  }
  init, step = training(plain(linear), weighted(terms), optax.sgd(0.1))
  s = init({"params": {"kernel": jnp.ones((4, 3)).at[0, 0].set(2.0)}})
  step = jax.jit(step)
  whole, metrics = step(s, batch)
  fewer, _ = step(s, {key: value[:2] for key, value in batch.items()})
  assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
  assert nets.largest_gap(whole.params, fewer.params) < 1e-6


def test_accuracy_is_of_the_examples_that_count():
  def of(logits, ignored=None, **batch):
    return metrics.divided(metrics.accuracy(logits, batch, ignored))

  logits = jnp.asarray([[[0.0, 1], [2, 0], [0, 5]], [[1, 0], [0, 1], [0, 1]]])
  labels = jnp.asarray([[1, 1, -1], [0, 255, 1]])
  assert float(of(logits, 255, label=labels)["accuracy"]) == 0.75
  assert float(of(logits, label=jnp.argmax(logits, -1))["accuracy"]) == 1.0
  assert float(of(jnp.zeros((1, 300)).at[0, 256].set(1.0), label=jnp.asarray([0], jnp.uint8))["accuracy"]) == 0.0
  binary = jnp.asarray([[-1.0], [2.0], [3.0]])
  assert float(of(binary, label=jnp.asarray([0, 1, 0]))["accuracy"]) == np.float32(2 / 3)
  assert float(of(binary, label=jnp.asarray([[0], [1], [1]]))["accuracy"]) == 1.0
  masked = of(jnp.asarray([[9.0, 1.0, 0.0]]), label=jnp.asarray([1]), class_mask=jnp.asarray([False, True, True]))
  assert float(masked["accuracy"]) == 1.0
  known = jnp.asarray([[True, False], [True, True]])
  several = jnp.asarray([[-1.0, 2.0], [3.0, 1.0]]), jnp.asarray([[1, 0], [1, 1]])
  assert float(of(several[0], label=several[1], class_mask=known)["accuracy"]) == np.float32(2 / 3)
  assert of(jnp.zeros((2, 3)), label=jnp.zeros((2, 1), jnp.int32)) == {}
  assert of(jnp.zeros((2, 3)), label=jnp.zeros(2)) == {}
  assert of({"a": jnp.zeros((2, 3))}, label=jnp.zeros(2, jnp.int32)) == {}


def test_a_loss_between_examples_is_refused_by_one_check():
  objective = weighted([Term("between", kd.dist())])
  objective.refuse_accumulation(1)
  with pytest.raises(UserError, match="the term 'between' compares"):
    objective.refuse_accumulation(3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, "classes"])
def test_a_teacher_that_is_not_finite_stops_the_run(bad):
  get_batch, data = of_examples(np.arange(8), 4)
  logits = np.array(data["teacher_logits"])
  logits[:, 1] = -np.inf  # a class that the teacher excludes is fine
  logits[6] = -np.inf if bad == "classes" else bad
  data |= {"teacher_logits": jnp.asarray(logits)}
  init, step = training(plain(linear), weighted([Term("soft", kd.hinton(2.0))]), optax.sgd(0.1))
  s = init({"params": {"kernel": jnp.ones((4, 3))}})
  with pytest.raises(UserError, match="the outputs of teacher 'big' are not finite for an example of .* step 2; .*"):
    engine.fit(step, s, get_batch, data, steps=4, teacher_name="teacher 'big'", steps_per_call=1)
  _, history = loop.fit(step, s, get_batch, data, steps=1, steps_per_call=1)
  assert "teacher_not_finite" not in history


@pytest.mark.parametrize("shape", [(5,), (3, 6), (2, 5)])
def test_masks_of_other_positions_than_the_labels(shape):
  batch = {"label": jnp.zeros((3, 5), jnp.int32), "valid": jnp.ones(shape, bool)}
  with pytest.raises(UserError, match="labels and masks have the shapes .*; expected the same leading axes"):
    counted(batch, "labelled")


@pytest.mark.parametrize("positions", [2, 3])
@pytest.mark.parametrize("members", [0, 2])
def test_a_class_mask_of_examples_counts_at_every_position(positions, members):
  """(batch, classes) beside logits (batch, positions, classes), also where there are as many positions as examples."""
  rng = np.random.default_rng(0)
  student_logits, teacher_logits = (rng.normal(size=(2, positions, 4)).astype(np.float32) for _ in range(2))
  mask, label = np.array([[True, True, False, True], [False, True, True, True]]), np.array([[3] * positions] * 2)
  student_logits[0, :, 2], student_logits[1, :, 0] = 9.0, 9.0
  teacher_logits[0, :, 2], teacher_logits[1, :, 0] = np.nan, np.inf  # classes that do not count
  teacher = kd.Outputs(
    jnp.asarray(teacher_logits), members=jnp.stack([jnp.asarray(teacher_logits)] * members, 1) if members else None
  )
  batch = {"image": jnp.asarray(student_logits), "label": jnp.asarray(label), "class_mask": jnp.asarray(mask)}
  init, step = training(
    plain(lambda v, x, **_: (x + v["params"]["kernel"], {})),
    weighted([Term("soft", kd.hinton(1.0))]),
    optax.sgd(0.1),
    teacher=lambda v, x: teacher,
  )
  s = init({"params": {"kernel": jnp.zeros(4)}})
  metrics = jax.jit(step)(s, batch, 0)[1]
  shown = np.where(mask[:, None], student_logits, -np.inf)
  assert float(metrics["accuracy"]) == np.float32(np.mean(shown.argmax(-1) == label))
  assert float(metrics["teacher_not_finite"]) == 0
  kls = []
  for i in range(2):
    p, q = (np.exp(np.float64(x[i][:, mask[i]])) for x in (teacher_logits, student_logits))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    kls.append((p * np.log(p / q)).sum(-1))
  np.testing.assert_allclose(metrics["soft"], np.mean(kls), rtol=1e-5)


def of_terms(terms, batch, width=3, **keywords):
  """The metrics of one compiled step of a linear model."""
  init, step = training(plain(linear), weighted(terms), optax.sgd(0.1), **keywords)
  s = init({"params": {"kernel": jnp.linspace(-1.0, 1.0, 4 * width).reshape(4, width)}})
  return jax.jit(step)(s, {"image": jnp.linspace(-1.0, 2.0, 12).reshape(3, 4), **batch})[1]


@pytest.mark.parametrize(
  "keywords",
  [{"mask": "labelled"}, {"mask": "unlabelled"}, {"ignore_label": 3}],
  ids=lambda keywords: "-".join(keywords),
)
def test_missing_labels_are_refused_by_masks(keywords):
  batch = {"teacher_logits": jnp.ones((3, 3))}
  with pytest.raises(UserError, match="term 'soft' has (mask|ignore_label) .*, and the batch has no 'label'"):
    of_terms([Term("soft", kd.hinton(), **keywords)], batch)


@pytest.mark.parametrize(("dtype", "ignored", "alias"), [("uint8", -1, 255), ("uint8", 300, 44), ("int8", 257, 1)])
def test_a_number_that_no_label_can_be_ignores_none(dtype, ignored, alias):
  """Inside jit a number outside the labels' dtype would wrap to the label of another class."""
  batch = {"label": jnp.asarray([0, alias, 1], dtype)}
  np.testing.assert_array_equal(jax.jit(lambda batch: kd.labelled(batch, ignored))(batch), [True] * 3)
  width = max(alias, 2) + 1
  want = of_terms([Term("hard", kd.hard_labels())], batch, width)
  got = of_terms([Term("hard", kd.hard_labels(), ignore_label=ignored)], batch, width)
  assert float(got["hard"]) == pytest.approx(float(want["hard"]), rel=1e-6)


def test_a_column_of_labels_of_one_output_is_masked():
  terms = [Term("on", kd.sigmoid_cross_entropy(), mask="labelled")]
  column = of_terms(terms, {"label": jnp.asarray([[1], [-1], [0]])}, 1)
  assert column == of_terms(terms, {"label": jnp.asarray([1, -1, 0])}, 1)
  kernel, x = np.linspace(-1.0, 1.0, 4), np.linspace(-1.0, 2.0, 12).reshape(3, 4)
  z = x @ kernel
  np.testing.assert_allclose(column["on"], np.mean([np.log1p(np.exp(-z[0])), np.log1p(np.exp(z[2]))]), rtol=1e-6)


@pytest.mark.parametrize("loss", [kd.sigmoid_cross_entropy(), kd.bernoulli_kl()])
def test_labels_of_several_outputs_leave_out_no_example(loss):
  batch = {"label": jnp.asarray([[1, -1, 0]] * 3), "teacher_logits": jnp.ones((3, 3))}
  with pytest.raises(UserError, match=r"term 'on' counts by labels, which are \(3, 3\).*batch\['class_mask'\]"):
    of_terms([Term("on", loss, mask="labelled")], batch)
  known = {"label": jnp.maximum(batch["label"], 0), "class_mask": batch["label"] >= 0}
  got = of_terms([Term("on", kd.sigmoid_cross_entropy())], known)
  z = np.linspace(-1.0, 2.0, 12).reshape(3, 4) @ np.linspace(-1.0, 1.0, 12).reshape(4, 3)
  np.testing.assert_allclose(got["on"], np.mean(np.log1p(np.exp(-z[:, 0])) + np.log1p(np.exp(z[:, 2]))), rtol=1e-6)


def test_inputs_that_are_trees_are_filled():
  batch = {"valid": jnp.asarray([True, False]), "image": {"x": jnp.full((2, 3), jnp.nan), "ids": jnp.ones((2, 3), int)}}
  filled = micro_batches.filled(batch)["image"]
  np.testing.assert_array_equal(filled["x"], [[np.nan] * 3, [0.0] * 3])
  np.testing.assert_array_equal(filled["ids"], batch["image"]["ids"])
  with pytest.raises(UserError, match="a batch holds 'x', 'valid'; expected 'image', the input of the model"):
    micro_batches.checked({"x": 0, "valid": None})


@pytest.mark.parametrize(
  ("terms", "message"),
  [
    (Term("soft", kd.hinton()), "an objective takes a list of kd.Term"),
    ([kd.hinton()], "an objective takes a list of kd.Term"),
    ([Term("soft", kd.hinton)], "the loss of term 'soft' is hinton, not a loss; expected .* kd.hinton()"),
    ([Term("soft", "hinton")], "the loss of term 'soft' is 'hinton', not a loss"),
  ],
)
def test_terms_that_are_not_losses(terms, message):
  with pytest.raises(UserError, match=message):
    weighted(terms)
