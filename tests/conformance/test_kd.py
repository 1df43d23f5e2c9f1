"""Every loss of kd, found by walking the package, through one battery. Adding a file to kd/ is enough to be tested.

A loss is made with its default arguments. It gets float logits of student and teacher and a batch with labels, the
classes' indices or, of outputs that stand alone, which is on. Losses that read activations have a battery of their own,
`test_kd_taps.py`.
"""

import functools
import inspect
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import kd
from kd.base import Schedule
from kd.kinds import logits_of
from kd.schedules import linear
from leanax.core.errors import UserError
from tests.conformance.compare import assert_finite, assert_float32, assert_near, assert_zero, cast, slopes
from tests.conformance.exceptions import cases
from tests.conformance.losses import FOUND, ON_LOGITS, ON_TAPS, sorted_out
from tests.numbers import array

BATCH, CLASSES = 8, 5
LOSSES = dict(ON_LOGITS)
OF = {name: inspect.signature(make).parameters for name, make in LOSSES.items()}
SCHEDULED = [name for name in LOSSES if "temperature" in OF[name] and OF[name]["temperature"].annotation == Schedule]
SWITCHES = {"sigmoid_cross_entropy"}  # whose labels say for each output whether it is on
CHECKS = []


def every_loss(test):
  """Runs a check for each loss, with the exceptions that have a reason."""
  check = test.__name__.removeprefix("test_")
  CHECKS.append(check)
  return pytest.mark.parametrize("name", cases("kd", LOSSES, check))(test)


def logits(seed, dtype=np.float32, scale=2.0):
  return array(scale * np.random.default_rng(seed).normal(size=(BATCH, CLASSES)), dtype)


def batch():
  return {"label": jnp.arange(BATCH, dtype=jnp.int32) % CLASSES, "id": jnp.arange(BATCH, dtype=jnp.int32)}


def given(loss, data, width):
  """The batch as a loss reads it."""
  keys = ("label", "mix_label") if loss.name in SWITCHES else ()
  return {**data, **{key: jax.nn.one_hot(data[key], width) for key in keys if key in data}}


def start(loss, dtype=np.float32):
  """The loss's aux and aux_state, as keyword arguments."""
  if loss.init is None:
    return {"aux": None, "aux_state": None}
  shape = kd.Outputs(jax.ShapeDtypeStruct((BATCH, CLASSES), jnp.float32))
  aux, aux_state = loss.init(jax.random.key(0), shape, shape, None)
  return cast({"aux": aux, "aux_state": aux_state}, dtype)


def value(name, student, teacher, data=None, **kwargs):
  loss = LOSSES[name]()
  data = given(loss, batch() if data is None else data, logits_of(student).shape[-1])
  return loss(student, teacher, data, **{**start(loss), **kwargs})[0]


def total(name, student, teacher, **kwargs):
  return jnp.sum(value(name, student, teacher, **kwargs))


def train(loss, student, teacher, data, begin=None, **kwargs):
  """((per_example, aux_state), (gradient of the student, of aux)) of the sum over the examples that count."""
  begin, data = begin or start(loss, student.dtype), given(loss, data, student.shape[-1])

  def run(student, aux):
    per_example, after, _ = loss(student, teacher, data, **{**begin, "aux": aux}, **kwargs)
    per_example = jnp.where(data.get("valid", jnp.ones(per_example.shape, bool)), per_example, 0.0)
    return jnp.sum(per_example), (per_example, after)

  gradient, numbers = jax.grad(run, (0, 1), has_aux=True)(student, begin["aux"])
  return numbers, gradient


@functools.cache
def program(make):
  """`train` of a loss, compiled once for each form of what it is given."""
  return jax.jit(lambda student, teacher, data, begin: train(make(), student, teacher, data, begin))


def trained(name, student, teacher, begin=None, data=None):
  """`train` of the loss, by a program that all of its tests share."""
  return program(LOSSES[name])(student, teacher, data or batch(), begin or start(LOSSES[name](), student.dtype))


def numbers(name, student, teacher):
  """The number of each example of the whole batch, by the same program."""
  return trained(name, student, teacher)[0][0]


def files():
  """The names of the files of kd/losses."""
  folders = [pathlib.Path(path) / "losses" for path in kd.__path__]
  return {file.stem for folder in folders for file in folder.glob("*.py")} - {"__init__"}


def test_every_file_of_losses_is_in_a_battery():
  assert not set(ON_LOGITS) & set(ON_TAPS)
  assert files() == set(ON_LOGITS) | set(ON_TAPS), "a file of kd/losses makes no kd.Loss, or kd does not export it"


def test_a_file_without_a_loss_is_found(tmp_path, monkeypatch):
  (tmp_path / "losses").mkdir()
  (tmp_path / "losses" / "stray.py").touch()
  monkeypatch.setattr(kd, "__path__", [*kd.__path__, str(tmp_path)])
  stray = lambda: lambda student, teacher: student
  assert files() - {name for kind in sorted_out({**FOUND, "stray": stray}) for name in kind} == {"stray"}


def test_the_walk_finds_them():
  assert {"hinton", "hard_labels", "soft_labels", "logit_l2"} <= set(LOSSES) and "hinton" in SCHEDULED


@pytest.mark.sampled(3)
@every_loss
def test_full_signature(name):
  parameters = inspect.signature(LOSSES[name]()).parameters
  assert list(parameters)[:3] == ["student", "teacher", "batch"]
  assert {"aux", "aux_state", "key", "axis_name", "class_mask", "step"} <= set(parameters)
  per_example = numbers(name, logits(0), logits(1))
  assert per_example.shape == (BATCH,) and per_example.dtype == jnp.float32


@every_loss
def test_reads_names_the_keys_that_it_needs(name):
  loss, begin = LOSSES[name](), start(LOSSES[name]())
  for key in ("label", "id"):
    data = {k: v for k, v in given(loss, batch(), CLASSES).items() if k != key}
    assert needs(lambda data=data: loss(logits(0), logits(1), data, **begin)) is (key in loss.reads)


def needs(run):
  """Returns whether a call is refused."""
  try:
    jax.eval_shape(run)
  except UserError:
    return True
  return False


@every_loss
def test_relational_tells_whether_other_examples_matter(name):
  """Other examples change an example's number where the loss is relational, and nowhere else."""
  student, teacher = logits(0), logits(1)
  changed = numbers(name, student.at[1:].multiply(-3.0), teacher.at[1:].add(jnp.arange(CLASSES, dtype=jnp.float32)))
  same = np.allclose(changed[0], numbers(name, student, teacher)[0], rtol=1e-6, atol=0)
  assert LOSSES[name]().relational is not same


@every_loss
def test_reads_the_teacher(name):
  assert not np.allclose(numbers(name, logits(0), logits(1)), numbers(name, logits(0), logits(2)))


@every_loss
def test_zero_at_the_teacher(name):
  np.testing.assert_allclose(numbers(name, logits(0), logits(0)), 0.0, atol=1e-6)


@every_loss
def test_flat_at_the_teacher(name):
  _, (gradient, _) = trained(name, logits(0), logits(0))
  np.testing.assert_allclose(gradient, 0.0, atol=2e-6)


@every_loss
def test_shift_invariant(name):
  student, teacher = logits(0), logits(1)
  shift = jnp.arange(BATCH, dtype=jnp.float32)[:, None] - 3.0
  moved, fixed = (numbers(name, one, teacher) for one in (student + shift, student))
  np.testing.assert_allclose(moved, fixed, rtol=2e-5, atol=2e-6)


@pytest.mark.sampled(3)
@every_loss
@pytest.mark.parametrize("dtype", [pytest.param(jnp.bfloat16, marks=pytest.mark.slow), jnp.float16, jnp.float32])
def test_finite_at_a_gap_of_ten_thousand(name, dtype):
  far = jnp.zeros((BATCH, CLASSES), dtype).at[:, 0].set(1e4)

  def run(student, teacher):
    per_example = value(name, student, teacher)
    return jnp.sum(per_example), per_example

  for student, teacher in ((far, -far), (-far, far), (far, jnp.roll(far, 1, axis=-1)), (far, far)):
    gradient, per_example = jax.grad(run, has_aux=True)(student, teacher)
    assert_finite((per_example, gradient))
    assert gradient.dtype == dtype


@pytest.mark.sampled(3)
@every_loss
@pytest.mark.parametrize("junk", [*(pytest.param(x, marks=pytest.mark.slow) for x in (7.0, -np.inf)), np.inf, np.nan])
def test_masked_classes_do_not_exist(name, junk):
  """With `class_mask`, a loss is that of the classes that count, whatever the others hold; they get zero gradient."""
  class_mask = jnp.asarray([True, True, False, True, False])
  labels = {"label": jnp.asarray([0, 1, 2] * 3, jnp.int32)[:BATCH]}  # among the classes that count
  kept = np.flatnonzero(class_mask)
  whole = {"label": jnp.asarray(kept)[labels["label"]].astype(jnp.int32)}
  student, teacher = jnp.where(class_mask, logits(0), junk), jnp.where(class_mask, logits(1), junk)
  small = value(name, logits(0)[:, kept], logits(1)[:, kept], labels)
  (per_example, _), (gradient, _) = train(LOSSES[name](), student, teacher, whole, class_mask=class_mask)
  np.testing.assert_allclose(per_example, small, rtol=1e-5, atol=1e-6)
  assert_zero(np.asarray(gradient)[:, ~np.asarray(class_mask)])
  assert_finite(gradient)


@pytest.mark.sampled(3)
@every_loss
def test_an_example_without_classes(name):
  """All classes of one example masked: its number is 0 unless others have a part in it; no gradient."""
  loss, class_mask = LOSSES[name](), jnp.ones((BATCH, CLASSES), bool).at[2].set(False)
  (per_example, _), gradients = train(loss, logits(0), logits(1), batch(), class_mask=class_mask)
  assert_finite((per_example, gradients))
  assert_zero(gradients[0][2])
  if not loss.relational:
    others = np.arange(BATCH) != 2
    assert_zero(per_example[2])
    np.testing.assert_allclose(per_example[others], value(name, logits(0), logits(1))[others], rtol=1e-5)


@pytest.mark.sampled(3)
@every_loss
def test_float32_is_float64(name):
  """The same numbers in both: values, gradients of the student and of aux, to 1e-5 of their size."""
  single = trained(name, logits(0), logits(1))
  with jax.enable_x64(True):
    double = trained(name, *(array(logits(seed), np.float64) for seed in (0, 1)))
  assert_float32(single, double)


@every_loss
def test_gradient_is_the_finite_difference(name):
  with jax.enable_x64(True):
    student, teacher = logits(0, np.float64), logits(1, np.float64)
    gradient, _ = trained(name, student, teacher)[1]
    of_student = lambda student: np.sum(numbers(name, array(student), teacher))
    for along, slope in slopes(of_student, gradient, student, 1e-5):
      np.testing.assert_allclose(along, slope, rtol=1e-7, atol=1e-8)


@every_loss
def test_gradient_of_aux_is_the_finite_difference(name):
  with jax.enable_x64(True):
    begin = start(LOSSES[name](), np.float64)
    run = lambda aux: trained(name, logits(0, np.float64), logits(1, np.float64), {**begin, "aux": aux})
    if jax.tree.leaves(begin["aux"]):
      of_aux = lambda aux: np.sum(run(jax.tree.map(array, aux))[0][0])
      for along, slope in slopes(of_aux, run(begin["aux"])[1][1], begin["aux"], 1e-5):
        np.testing.assert_allclose(along, slope, rtol=1e-7, atol=1e-8)


@every_loss
def test_the_teacher_gets_exactly_no_gradient(name):
  gradient = jax.grad(lambda t: total(name, logits(0), t))(logits(1))
  assert jnp.all(gradient == 0)


@pytest.mark.sampled(3)
@every_loss
@pytest.mark.parametrize("left", [pytest.param(BATCH, marks=pytest.mark.slow), 5])
def test_split_over_devices(name, left):
  """Four devices with a quarter of the batch each give the same as one with all of it: numbers, both gradients, states.

  Where only five examples count, the third device has one that does and the fourth has none.
  """
  mesh, devices = Mesh(np.asarray(jax.devices()[:4]), ("devices",)), P("devices")
  with jax.enable_x64(True):
    loss, student, teacher, data = LOSSES[name](), logits(0, np.float64), logits(1, np.float64), batch()
    if left < BATCH:
      data["valid"] = jnp.arange(BATCH) < left
    local = partial(train, loss, axis_name="devices")
    split = jax.shard_map(local, mesh=mesh, in_specs=devices, out_specs=((devices, P()), (devices, P())))
    (per_example, after), gradients = jax.jit(split)(student, teacher, data)
    (its_per_example, its_after), its_gradients = trained(name, student, teacher, data=data)
  for got, want in zip((per_example, after, *gradients), (its_per_example, its_after, *its_gradients), strict=True):
    assert_near(got, want, 1e-10)


@pytest.mark.sampled(3)
@every_loss
def test_padding_does_not_matter(name):
  """Examples that `batch["valid"]` leaves out may hold anything finite; the others are as without them."""
  labels = jnp.arange(2 * BATCH, dtype=jnp.int32) % BATCH % CLASSES
  data = {"label": labels, "valid": jnp.arange(2 * BATCH) < BATCH}
  with jax.enable_x64(True):
    small, (gradient, _) = trained(name, logits(0, np.float64), logits(1, np.float64))
    student, teacher = (
      jnp.concatenate([logits(seed, np.float64), 50 * logits(seed + 5, np.float64)]) for seed in (0, 1)
    )
    padded, (wide, _) = jax.jit(partial(train, LOSSES[name]()))(student, teacher, data)
    np.testing.assert_allclose(padded[0].sum(), small[0].sum(), rtol=1e-10)
    assert_near(wide[:BATCH], gradient, 1e-10)
    assert_zero(wide[BATCH:])


@pytest.mark.sampled(3)
@every_loss
@pytest.mark.parametrize("left", [0, 1])
def test_finite_where_hardly_any_example_counts(name, left):
  """A term's mask may exclude a whole batch: then nothing is trained by it, and no state changes."""
  loss, data = LOSSES[name](), {**batch(), "valid": jnp.arange(BATCH) < left}
  assert_finite(value(name, logits(0), logits(1), data))
  (per_example, after), gradients = train(loss, logits(0), logits(1), data)
  assert_finite((per_example, after, gradients))
  if not left:
    assert_zero((per_example, gradients))
    jax.tree.map(np.testing.assert_array_equal, after, start(loss)["aux_state"])


@every_loss
def test_a_mixed_example_has_its_two_labels_numbers(name):
  """They are averaged with the weights of their images."""
  data, student, teacher = batch(), logits(0), logits(1)
  mixed = {**data, "mix": jnp.linspace(0.0, 1.0, BATCH), "mix_label": (data["label"] + 2) % CLASSES}
  first, second = (value(name, student, teacher, {**data, "label": mixed[of]}) for of in ("label", "mix_label"))
  (per_example, _), gradients = train(LOSSES[name](), student, teacher, mixed)
  assert_near(per_example, mixed["mix"] * first + (1 - mixed["mix"]) * second, 1e-5)
  assert_finite(gradients)


@every_loss
@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_nan_is_never_ignored(name, junk):
  """One logit of the student that is none: its example has none either, and no other has, where none is related."""
  student = logits(0).at[2, 1].set(junk)
  (per_example, _), (gradient, _) = train(LOSSES[name](), student, logits(1), batch())
  assert not np.isfinite(per_example[2])
  assert not np.isnan(junk) or not np.isfinite(gradient[2]).all()
  if not LOSSES[name]().relational:
    assert_finite((np.delete(per_example, 2), np.delete(gradient, 2, 0)))


@pytest.mark.sampled(3)
@every_loss
@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_a_broken_teacher_is_not_a_perfect_student(name, junk):
  (per_example, _), (gradient, _) = train(LOSSES[name](), logits(0), logits(1).at[2, 1].set(junk), batch())
  assert not np.isfinite(per_example[2])
  assert not np.isnan(junk) or not np.isfinite(gradient[2]).all()


@pytest.mark.sampled(3)
@every_loss
def test_masked_examples_may_hold_anything(name):
  """NaN and a label that is none, in what `valid` leaves out: everything else is as it was, and it is exactly 0."""
  loss, valid = LOSSES[name](), jnp.arange(BATCH) != 2
  data = {**batch(), "valid": valid}
  want = train(loss, logits(0), logits(1), data)
  student, teacher = (logits(seed).at[2].set(jnp.nan) for seed in (0, 1))
  got = train(loss, student, teacher, {**data, "label": data["label"].at[2].set(-1)})
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert_zero((value(name, student, teacher, data)[2], got[1][0][2]))


@pytest.mark.sampled(3)
@every_loss
def test_a_class_that_both_exclude(name):
  """A logit of -inf in all networks: as if the class were cut out, and no gradient is NaN."""
  data = {"label": jnp.arange(BATCH, dtype=jnp.int32) % (CLASSES - 1)}
  student, teacher = (logits(seed).at[:, -1].set(-jnp.inf) for seed in (0, 1))
  small = jax.jit(partial(train, LOSSES[name]()))(logits(0)[:, :-1], logits(1)[:, :-1], data)
  (per_example, after), (gradient, of_aux) = train(LOSSES[name](), student, teacher, data)
  np.testing.assert_allclose(per_example, small[0][0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient[:, :-1], small[1][0], rtol=1e-5, atol=1e-5)
  assert_zero(gradient[:, -1])
  assert_near((after, of_aux), (small[0][1], small[1][1]), 1e-5)


@pytest.mark.sampled(3)
@every_loss
@pytest.mark.parametrize("lead", [(2, 4), (2, 2, 2), (8, 1)])
def test_every_position_is_an_example(name, lead):
  """Logits (batch, *positions, classes) give one number per position, that of the same rows as a batch."""
  loss, data, valid = LOSSES[name](), batch(), jnp.arange(BATCH) % 3 != 1
  class_mask = (jnp.arange(CLASSES) < 4) | (jnp.arange(BATCH) < 4)[:, None]
  data = {"label": data["label"] % 4, "valid": valid, "mix": jnp.linspace(0, 1, BATCH), "mix_label": data["label"] % 3}
  want, (slope, _) = train(loss, logits(0), logits(1), data, class_mask=class_mask)
  tall = lambda x: x.reshape(*lead, *x.shape[1:])
  wide = {key: tall(x) for key, x in data.items()}
  got, (gradient, _) = train(loss, tall(logits(0)), tall(logits(1)), wide, class_mask=tall(class_mask))
  assert got[0].shape == lead and gradient.shape == (*lead, CLASSES)
  np.testing.assert_array_equal(got[0], tall(want[0]))
  np.testing.assert_array_equal(gradient, tall(slope))


@every_loss
def test_a_mask_of_the_batch_is_one_of_its_positions(name):
  """`valid` (batch,), `class_mask` (batch, classes) and `mix` (batch,) are those of every position."""
  lead, label = (2, 4), jnp.arange(BATCH, dtype=jnp.int32).reshape(2, 4) % 3
  masks = jnp.asarray([False, True]), jnp.arange(CLASSES) < jnp.asarray([[3], [4]]), jnp.asarray([0.25, 0.5])
  runs = []
  for valid, class_mask, mix in (masks, [jnp.repeat(mask[:, None], 4, axis=1) for mask in masks]):
    data = {"label": label, "mix_label": label[::-1], "mix": mix, "valid": valid}
    student, teacher = (logits(seed).reshape(*lead, CLASSES) for seed in (0, 1))
    runs.append(value(name, student, teacher, data, class_mask=class_mask))
  np.testing.assert_array_equal(*runs)
  assert_zero(runs[0][0])
  assert jnp.all(runs[0][1] != 0)


@every_loss
def test_one_class_is_refused(name):
  one, data = jnp.zeros((BATCH, 1)), {"label": jnp.zeros(BATCH, jnp.int32)}
  message = ""
  try:
    value(name, one, one, data)
  except UserError as error:
    message = str(error)
  assert message.startswith(f"the loss {name!r} compares distributions over classes") and "bernoulli_kl" in message


WRONG = {
  "of one axis": ({"student": np.zeros(BATCH, np.float32)}, r"reads logits \(batch, \*positions, classes\)"),
  "integers": ({"student": np.zeros((BATCH, CLASSES), np.int32)}, "reads logits .*, floats, of the student; got int32"),
  "valid of floats": ({"valid": jnp.ones(BATCH)}, r"expects batch\['valid'\] to be bools \(8,\); got float32 \(8,\)"),
  "valid of a column": ({"valid": jnp.ones((BATCH, 1), bool)}, r"expects batch\['valid'\] .*; got bool \(8, 1\)"),
  "one valid": ({"valid": jnp.ones((1,), bool)}, r"expects batch\['valid'\] .*; got bool \(1,\)"),
  "classes of floats": ({"class_mask": jnp.ones(CLASSES)}, r"class_mask to be bools \(5,\) or \(8, 5\); got float32"),
  "classes of a column": ({"class_mask": jnp.ones((BATCH, 1), bool)}, r"expects class_mask .*; got bool \(8, 1\)"),
  "classes of the batch": ({"class_mask": jnp.ones(BATCH, bool)}, r"expects class_mask .*; got bool \(8,\)"),
}


@every_loss
@pytest.mark.parametrize("wrong", WRONG)
def test_mistakes_of_form_are_one_sentence(name, wrong):
  changed, words = WRONG[wrong]
  loss, data = LOSSES[name](), {**batch(), **{key: x for key, x in changed.items() if key == "valid"}}
  student, class_mask = changed.get("student", logits(0)), changed.get("class_mask")
  with pytest.raises(UserError, match=words):
    loss(student, logits(1), given(loss, data, CLASSES), **start(loss), class_mask=class_mask)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SCHEDULED)
def test_a_temperature_may_follow_a_schedule(name):
  follows, fixed = LOSSES[name](temperature=linear(1.0, 5.0, 0, 10)), LOSSES[name](temperature=3.0)
  student, teacher = logits(0), logits(1)
  got = jax.jit(lambda step: train(follows, student, teacher, batch(), step=step))(jnp.asarray(5, jnp.int32))
  assert_near(got, train(fixed, student, teacher, batch()), 1e-5)


@every_loss
def test_reads_outputs_and_arrays_alike(name):
  plain = value(name, logits(0), logits(1))
  np.testing.assert_array_equal(value(name, kd.Outputs(logits(0)), kd.Outputs(logits(1))), plain)
