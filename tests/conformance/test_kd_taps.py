"""Every loss of kd that reads activations, found by walking the package, through one battery.

A loss is made by `tests.conformance.losses`.
"""

import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import kd
from kd.base import Schedule
from kd.schedules import linear
from leanax.core.errors import UserError
from tests.conformance.compare import assert_finite, assert_float32, assert_near, assert_zero, cast, slopes
from tests.conformance.exceptions import EXCEPTIONS, cases
from tests.conformance.losses import ON_TAPS, TAPS, made
from tests.conformance.test_kd import needs
from tests.numbers import array

pytestmark = pytest.mark.slow

BATCH, CLASSES = 8, 7  # no tap, and no layer that is trained, has as many channels as there are classes
# The student's and the teacher's activations, without the batch.
STUDENT = {"early": (8, 8, 4), "map": (4, 4, 6), "late": (2, 2, 8), "vector": (12,), "twin": (4, 4, 10)}
TEACHER = {"early": (8, 8, 4), "map": (4, 4, 10), "late": (2, 2, 12), "vector": (16,), "twin": (4, 4, 10)}
VARIABLES = {"params": {"head": {"kernel": jnp.ones((16, CLASSES)), "bias": jnp.zeros((CLASSES,))}}}
LOSSES = ON_TAPS
OF = {name: inspect.signature(make).parameters for name, make in LOSSES.items()}  # a loss may read the student only
SCHEDULED = [name for name in LOSSES if "temperature" in OF[name] and OF[name]["temperature"].annotation == Schedule]
CHECKS = []


def every_loss(test):
  """Runs a check for each loss, with the exceptions that have a reason."""
  check = test.__name__.removeprefix("test_")
  CHECKS.append(check)
  return pytest.mark.parametrize("name", cases("kd", LOSSES, check))(test)


@cache
def make(name, **changed):
  return made(LOSSES[name], **changed)


def outputs(seed, shapes=STUDENT, dtype=np.float32, count=BATCH):
  rng = np.random.default_rng(seed)
  logits = array(2 * rng.normal(size=(count, CLASSES)), dtype)
  return kd.Outputs(logits, {tap: array(rng.normal(size=(count, *shape)), dtype) for tap, shape in shapes.items()})


def batch(count=BATCH):
  index = jnp.arange(count, dtype=jnp.int32)
  return {"label": index % CLASSES, "id": index}


def start(loss, dtype=np.float32):
  if loss.init is None:
    return {"aux": None, "aux_state": None}
  return dict(_started(loss, jnp.dtype(dtype), jax.config.jax_enable_x64))


@cache
def _started(loss, dtype, wide):
  del wide  # what is cached in one mode has other dtypes than in the other
  shapes = [jax.eval_shape(lambda s=shapes: outputs(0, s)) for shapes in (STUDENT, TEACHER)]
  with jax.ensure_compile_time_eval():  # numbers, and no tracers, in a function that is traced too
    aux, aux_state = loss.init(jax.random.key(7), *shapes, VARIABLES)
    return cast({"aux": aux, "aux_state": aux_state}, dtype)


def value(loss, student, teacher, data=None, **kwargs):
  data = batch(len(student.logits)) if data is None else data
  return loss(student, teacher, data, key=jax.random.key(3), **kwargs)[0]


@cache
def pair(dtype=np.float32, count=BATCH):
  with jax.ensure_compile_time_eval():
    return outputs(0, dtype=dtype, count=count), outputs(1, TEACHER, dtype, count)


def train(loss, student, teacher, data=None, *, aux, aux_state, axis_name=None, **kwargs):
  """((per_example, aux_state), (gradient of the student, of aux)) of the sum over the examples that count."""
  data = batch(len(student.logits)) if data is None else data

  def total(student, aux):
    more = {"aux": aux, "aux_state": aux_state, "axis_name": axis_name, "key": jax.random.key(3)}
    per_example, after, _ = loss(student, teacher, data, **more, **kwargs)
    counts = data.get("valid", jnp.ones(per_example.shape, bool))
    return jnp.sum(jnp.where(counts, per_example, 0.0)), (jnp.where(counts, per_example, 0.0), after)

  gradient, numbers = jax.grad(total, (0, 1), has_aux=True)(student, aux)
  return numbers, gradient


@cache
def jitted(name):
  """`train` of one loss, compiled once for all checks."""
  loss = make(name)
  return jax.jit(
    lambda student, teacher, data, begin, class_mask=None: train(
      loss, student, teacher, data, class_mask=class_mask, **begin
    )
  )


def test_the_walk_finds_them():
  assert all(isinstance(make(name), kd.Loss) for name in LOSSES)
  assert set(TAPS) <= set(LOSSES) and "byot" in SCHEDULED


@every_loss
def test_full_signature(name):
  loss = make(name)
  per_example, _, logs = loss(*pair(), batch(), key=jax.random.key(3), **start(loss))
  assert per_example.shape == (BATCH,) and per_example.dtype == jnp.float32 and isinstance(logs, dict)
  assert jnp.all(jnp.isfinite(per_example))


@every_loss
def test_reads_the_teacher(name):
  loss = make(name)
  student, teacher = pair()
  other = outputs(2, TEACHER)
  if not loss.needs_teacher:
    alone = value(loss, student, None, **start(loss))
    np.testing.assert_array_equal(value(loss, student, teacher, **start(loss)), alone)
    return
  assert not np.allclose(value(loss, student, teacher, **start(loss)), value(loss, student, other, **start(loss)))


@every_loss
def test_reads_names_the_keys_that_it_needs(name):
  loss, (student, teacher), begin = make(name), pair(), start(make(name))
  for key in ("label", "id"):
    data = {k: v for k, v in batch().items() if k != key}
    assert needs(lambda data=data: value(loss, student, teacher, data, **begin)) is (key in loss.reads)


@every_loss
def test_relational_tells_whether_other_examples_matter(name):
  """Other examples change an example's number where the loss is relational, and nowhere else."""
  loss = make(name)
  student, teacher = pair()
  others = outputs(5), outputs(6, TEACHER)
  changed = [jax.tree.map(lambda a, b: a.at[1:].set(3 * b[1:]), *both) for both in zip((student, teacher), others)]
  begin = start(loss)
  first, original = (jitted(name)(*both, batch(), begin)[0][0][0] for both in (changed, (student, teacher)))
  same = np.allclose(first, original, rtol=1e-5, atol=0)
  assert loss.relational is not same


@every_loss
def test_the_teacher_gets_exactly_no_gradient(name):
  loss = make(name)
  student, teacher = pair()
  gradient = jax.grad(lambda t: value(loss, student, t, **start(loss)).sum())(teacher)
  assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


@every_loss
def test_the_student_learns(name):
  loss = make(name)
  gradient = jitted(name)(*pair(), batch(), start(loss))[1][0]
  assert all(jnp.any(gradient.taps[tap] != 0) for tap in loss.taps.student)


@every_loss
def test_aux_gets_a_gradient(name):
  for leaf in jax.tree.leaves(jitted(name)(*pair(), batch(), start(make(name)))[1][1]):
    assert jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0)


@every_loss
@pytest.mark.parametrize("kind", ["dead", "huge", "constant"])
def test_finite(name, kind):
  loss = make(name)
  run, begin = jitted(name), start(loss)
  student, teacher = pair()
  change = {
    "dead": lambda a: 0 * a,
    "huge": lambda a: 1e4 * a,
    "constant": lambda a: 0 * a + 3,
  }[kind]
  changed = jax.tree.map(change, student), jax.tree.map(change, teacher)
  for s, t in ((changed[0], teacher), (student, changed[1]), changed):
    assert_finite(run(s, t, batch(), begin))


@every_loss
def test_finite_at_a_gap_of_ten_thousand(name):
  """Logits and activations in bfloat16: 10,000 in the first class and channel and 0 elsewhere; and any large ones."""
  loss = make(name)
  run, begin = jitted(name), start(loss)
  far = [jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.bfloat16).at[..., 0].set(1e4), one) for one in pair()]
  less = [jax.tree.map(jnp.negative, one) for one in far]
  other = jax.tree.map(lambda a: jnp.roll(a, 1, axis=-1), far[1])
  large = [cast(jax.tree.map(lambda a: 1e4 * a, one), jnp.bfloat16) for one in pair()]
  for s, t in ((far[0], less[1]), (less[0], far[1]), (far[0], other), (far[0], far[1]), large):
    numbers, gradient = run(s, t, batch(), begin)
    assert_finite((numbers, gradient))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient[0])} == {jnp.dtype(jnp.bfloat16)}


@every_loss
def test_float32_is_float64(name):
  """The same numbers in both: values, gradients of the student and of aux, to 1e-5 of their size."""
  loss = make(name)
  single = jitted(name)(*pair(), batch(), start(loss))
  with jax.enable_x64(True):
    double = jitted(name)(*cast(pair(), np.float64), batch(), start(loss, np.float64))
  assert_float32(single, double)


@cache
def derivatives(name):
  """In float64: directional derivatives by the gradients of the student and of aux, and finite differences."""
  with jax.enable_x64(True):
    (student, teacher), begin, run = pair(np.float64), start(make(name), np.float64), jitted(name)
    rng = np.random.default_rng(8)  # moved from where it starts: biases of 0 put dead places on the kink of a ReLU
    begin["aux"] = jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape), begin["aux"])
    total = lambda s, aux: run(s, teacher, batch(), {**begin, "aux": aux})[0][0].sum()
    _, (of_student, of_aux) = run(student, teacher, batch(), begin)
    return (
      slopes(lambda s: total(s, begin["aux"]), of_student, student),
      slopes(lambda aux: total(student, aux), of_aux, begin["aux"]) if jax.tree.leaves(begin["aux"]) else [],
    )


@every_loss
def test_gradient_is_the_finite_difference(name):
  for along, slope in derivatives(name)[0]:
    np.testing.assert_allclose(along, slope, rtol=2e-6, atol=1e-8)


@every_loss
def test_gradient_of_aux_is_the_finite_difference(name):
  for along, slope in derivatives(name)[1]:
    np.testing.assert_allclose(along, slope, rtol=2e-6, atol=1e-8)


@every_loss
@pytest.mark.parametrize("left", [BATCH, 5])
def test_split_over_devices(name, left):
  """Four devices with a quarter of the batch each give the same as one with all of it: numbers, both gradients, states.

  Where only five examples count, the third device has one that does and the fourth has none.
  """
  mesh = Mesh(np.asarray(jax.devices()[:4]), ("devices",))
  with jax.enable_x64(True):
    loss = make(name)
    begin, data = start(loss, np.float64), batch()
    if left < BATCH:
      data["valid"] = jnp.arange(BATCH) < left
    local = partial(train, loss, axis_name="devices", **begin)
    devices = P("devices")
    split = jax.shard_map(local, mesh=mesh, in_specs=devices, out_specs=((devices, P()), (devices, P())))
    (per_example, after), gradients = jax.jit(split)(*pair(np.float64), data)
    (its_per_example, its_after), its_gradients = jitted(name)(*pair(np.float64), data, begin)
  for got, want in zip((per_example, after, *gradients), (its_per_example, its_after, *its_gradients), strict=True):
    assert_near(got, want, 1e-10)


@every_loss
def test_padding_does_not_matter(name):
  """Examples that `batch["valid"]` leaves out may hold anything, NaN too; the others are as without them.

  The gradient of what they hold is exactly 0, and nothing of it is remembered.
  """
  with jax.enable_x64(True):
    loss = make(name)
    begin = start(loss, np.float64)
    small, gradient = jitted(name)(*pair(np.float64), batch(), begin)
    ends = outputs(5, dtype=np.float64), outputs(6, TEACHER, np.float64)
    data = {**batch(2 * BATCH), "valid": jnp.arange(2 * BATCH) < BATCH}
    for holds in (lambda b: 50 * b, *(partial(jnp.full_like, fill_value=bad) for bad in (np.nan, np.inf, -np.inf))):
      fill = lambda a, b, holds=holds: jnp.concatenate([a, holds(b)])
      long = [jax.tree.map(fill, *both) for both in zip(pair(np.float64), ends)]
      padded, wide = jitted(name)(*long, data, begin)
      counted, rest = (
        jax.tree.map(lambda a, part=part: a[part], wide[0]) for part in (slice(BATCH), slice(BATCH, None))
      )
      np.testing.assert_allclose(padded[0].sum(), small[0].sum(), rtol=1e-10)
      assert_near((counted, wide[1]), gradient, 1e-10)
      assert_near(padded[1], small[1], 1e-10)
      assert_zero(rest)


@every_loss
@pytest.mark.parametrize("left", [0, 1])
def test_finite_where_hardly_any_example_counts(name, left):
  """A term's mask may exclude a whole batch: then nothing is trained by it, and no state changes."""
  loss = make(name)
  begin, data = start(loss), {**batch(), "valid": jnp.arange(BATCH) < left}
  assert_finite(value(loss, *pair(), data, **begin))
  (per_example, after), gradients = jitted(name)(*pair(), data, begin)
  assert_finite((per_example, after, gradients))
  if not left:
    assert_zero((per_example, gradients))
    jax.tree.map(np.testing.assert_array_equal, after, begin["aux_state"])


@every_loss
def test_masked_classes_do_not_exist(name):
  """With `class_mask=`, a loss that reads logits is that of the classes that count, whatever the others hold."""
  loss = make(name)
  begin = start(loss)
  kept, inside = np.array([0, 1, 3]), jnp.arange(BATCH, dtype=jnp.int32) % 3
  class_mask = jnp.broadcast_to(jnp.zeros(CLASSES, bool).at[kept].set(True), (BATCH, CLASSES))
  cut = lambda tree: jax.tree.map(lambda a: a[..., kept] if a.shape[-1:] == (CLASSES,) else a, tree)
  small = value(loss, *cut(pair()), {**batch(), "label": inside}, **cut(begin))
  student, teacher = (o._replace(logits=jnp.where(class_mask, o.logits, jnp.nan)) for o in pair())
  data = {**batch(), "label": jnp.asarray(kept, jnp.int32)[inside]}
  (per_example, _), gradients = jitted(name)(student, teacher, data, begin, class_mask)
  assert_near(per_example, small, 1e-5)
  assert_finite(gradients)
  assert_zero(gradients[0].logits[~class_mask])


@every_loss
def test_an_example_without_classes(name):
  """All classes of one example masked: all is finite, and the others are as they were."""
  loss = make(name)
  begin = start(loss)
  class_mask = jnp.ones((BATCH, CLASSES), bool).at[2].set(False)
  (per_example, _), gradients = jitted(name)(*pair(), batch(), begin, class_mask)
  assert_finite((per_example, gradients))
  assert_zero(gradients[0].logits[2])
  others = np.arange(BATCH) != 2
  assert_near(per_example[others], value(loss, *pair(), **begin)[others], 1e-5)


@every_loss
def test_a_mixed_example_has_its_two_labels_numbers(name):
  """They are averaged with the weights of their images."""
  loss = make(name)
  begin, data = start(loss), batch()
  mixed = {**data, "mix": jnp.linspace(0.0, 1.0, BATCH), "mix_label": (data["label"] + 2) % CLASSES}
  first, second = (value(loss, *pair(), {**data, "label": mixed[of]}, **begin) for of in ("label", "mix_label"))
  per_example = value(loss, *pair(), mixed, **begin)
  assert_near(per_example, mixed["mix"] * first + (1 - mixed["mix"]) * second, 1e-5)


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_temperature_may_follow_a_schedule(name):
  loss, begin = make(name, temperature=linear(1.0, 5.0, 0, 10)), start(make(name))
  got = jax.jit(lambda step: train(loss, *pair(), step=step, **begin))(jnp.asarray(5, jnp.int32))
  assert_near(got, train(make(name, temperature=3.0), *pair(), **begin), 1e-5)


@every_loss
def test_a_missing_tap_is_named(name):
  loss = make(name)
  student, teacher = pair()
  with pytest.raises(
    UserError, match=f"the loss '{loss.name}' reads .* of the student, whose outputs have no such tap"
  ):
    value(loss, student._replace(taps={}), teacher, **start(loss))


@every_loss
def test_needs_its_teacher(name):
  loss = make(name)
  if not loss.needs_teacher:
    assert jnp.all(jnp.isfinite(value(loss, pair()[0], None, **start(loss))))
    return
  with pytest.raises(UserError, match="needs a teacher"):
    loss(pair()[0], None, batch(), **start(loss))


def test_exceptions_name_what_exists():
  from tests.conformance.test_kd import CHECKS as OF_LOGITS
  from tests.conformance.test_kd import LOSSES as ON_LOGITS

  known = {(name, check) for name in LOSSES for check in CHECKS} | {
    (name, check) for name in ON_LOGITS for check in OF_LOGITS
  }
  assert [key for key in EXCEPTIONS if key[0] == "kd" and key[1:] not in known] == []
