"""Every loss of kd that reads activations, found by walking the package, through one battery.

A loss is made with its default arguments and the taps that `TAPS` gives it, those of "map" if it gives none.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import kd
from core.errors import UserError
from core.methods import methods
from tests.conformance.exceptions import EXCEPTIONS, cases

BATCH, CLASSES = 8, 5
# The student's and the teacher's activations, without the batch.
STUDENT = {"early": (8, 8, 4), "map": (4, 4, 6), "late": (2, 2, 8), "vector": (12,), "twin": (4, 4, 10)}
TEACHER = {"early": (8, 8, 4), "map": (4, 4, 10), "late": (2, 2, 12), "vector": (16,), "twin": (4, 4, 10)}
VARIABLES = {"params": {"head": {"kernel": jnp.ones((16, CLASSES)), "bias": jnp.zeros((CLASSES,))}}}
LOSSES = {name: make for name, make in methods(kd).items() if "student" in inspect.signature(make).parameters}
OF = {name: inspect.signature(make).parameters for name, make in LOSSES.items()}  # a loss may read the student only
# loss -> (taps of the student, taps of the teacher, further arguments)
TAPS: dict[str, tuple] = {
  "fsp": (("early", "twin"), ("early", "twin"), {}),
  "kdsvd": (("early", "twin"), ("early", "twin"), {}),
  "byot": (("early", "map", "vector"), None, {}),
  "crd": (("vector",), ("vector",), {"examples": 16, "negatives": 8, "width": 5}),
  "review": (("early", "map", "late", "vector"), ("early", "map", "late", "vector"), {}),
  "srrl": (("vector",), ("vector",), {"classifier": "head"}),
}
CHECKS = []


def every_loss(test):
  """Runs a check for each loss, with the exceptions that have a reason."""
  check = test.__name__.removeprefix("test_")
  CHECKS.append(check)
  return pytest.mark.parametrize("name", cases("kd", LOSSES, check))(test)


def make(name):
  student, teacher, more = TAPS.get(name, (("map",), ("map",), {}))
  taps = {"student": student, "teacher": teacher}
  return LOSSES[name](**{whose: taps[whose] for whose in taps if whose in OF[name]}, **more)


def outputs(seed, shapes=STUDENT, dtype=np.float32, count=BATCH):
  rng = np.random.default_rng(seed)
  logits = jnp.asarray(2 * rng.normal(size=(count, CLASSES)), dtype)
  return kd.Outputs(
    logits, {tap: jnp.asarray(rng.normal(size=(count, *shape)), dtype) for tap, shape in shapes.items()}
  )


def batch(count=BATCH):
  index = jnp.arange(count, dtype=jnp.int32)
  return {"label": index % CLASSES, "id": index}


def start(loss, dtype=np.float32):
  if loss.init is None:
    return {}
  shapes = [jax.eval_shape(lambda s=shapes: outputs(0, s, dtype)) for shapes in (STUDENT, TEACHER)]
  aux, aux_state = loss.init(jax.random.key(7), *shapes, VARIABLES)
  return {"aux": aux, "aux_state": aux_state}


def value(loss, student, teacher, data=None, **kwargs):
  count = student.logits.shape[0]
  return loss(student, teacher, batch(count) if data is None else data, key=jax.random.key(3), **kwargs)[0]


def pair(dtype=np.float32, count=BATCH):
  return outputs(0, dtype=dtype, count=count), outputs(1, TEACHER, dtype, count)


def test_the_walk_finds_them():
  assert all(isinstance(make(name), kd.TapLoss) for name in LOSSES)
  assert set(TAPS) <= set(LOSSES)


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
def test_relational_says_whether_other_examples_matter(name):
  """Other examples change an example's number where the loss is relational, and nowhere else."""
  loss = make(name)
  student, teacher = pair()
  others = outputs(5), outputs(6, TEACHER)
  changed = [jax.tree.map(lambda a, b: a.at[1:].set(3 * b[1:]), *both) for both in zip((student, teacher), others)]
  begin = start(loss)
  same = np.allclose(value(loss, *changed, **begin)[0], value(loss, student, teacher, **begin)[0], rtol=1e-5, atol=0)
  assert kd.relational(loss) is not same


@every_loss
def test_the_teacher_gets_exactly_no_gradient(name):
  loss = make(name)
  student, teacher = pair()
  gradient = jax.grad(lambda t: value(loss, student, t, **start(loss)).sum())(teacher)
  assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


@every_loss
def test_the_student_learns(name):
  loss = make(name)
  student, teacher = pair()
  gradient = jax.grad(lambda s: value(loss, s, teacher, **start(loss)).sum())(student)
  assert all(jnp.any(gradient.taps[tap] != 0) for tap in loss.student)


@every_loss
def test_what_it_trains_gets_a_gradient(name):
  loss = make(name)
  begin = start(loss)
  if not jax.tree.leaves(begin.get("aux")):
    return
  gradient = jax.grad(lambda aux: value(loss, *pair(), **{**begin, "aux": aux}).sum())(begin["aux"])
  for leaf in jax.tree.leaves(gradient):
    assert jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0)


@every_loss
@pytest.mark.parametrize("kind", ["dead", "huge", "constant", "bfloat16"])
def test_finite(name, kind):
  loss = make(name)
  student, teacher = pair()
  change = {
    "dead": lambda a: 0 * a,
    "huge": lambda a: 1e4 * a,
    "constant": lambda a: 0 * a + 3,
    "bfloat16": lambda a: (100 * a).astype(jnp.bfloat16),
  }[kind]
  changed = jax.tree.map(change, student), jax.tree.map(change, teacher)
  for s, t in ((changed[0], teacher), (student, changed[1]), changed):
    gradient = jax.grad(lambda s, t=t: value(loss, s, t, **start(loss)).sum())(s)
    assert jnp.all(jnp.isfinite(value(loss, s, t, **start(loss))))
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@every_loss
def test_gradient_is_the_finite_difference(name):
  with jax.enable_x64(True):
    loss = make(name)
    student, teacher = pair(np.float64)
    begin = start(loss, np.float64)

    def total(s):
      return value(loss, s, teacher, **begin).sum()

    gradient = jax.grad(total)(student)
    for seed in range(3):
      direction = outputs(10 + seed, dtype=np.float64)
      ends = [total(jax.tree.map(lambda a, d, h=h: a + h * d, student, direction)) for h in (1e-6, -1e-6)]
      slope = (ends[0] - ends[1]) / 2e-6
      along = sum(jnp.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
      np.testing.assert_allclose(along, slope, rtol=2e-6, atol=1e-8)


@every_loss
def test_split_over_devices(name):
  """Four devices with a quarter of the batch each give the same numbers and gradients as one with all of it."""
  loss = make(name)
  student, teacher, data = *pair(), batch()
  begin = start(loss)
  mesh = Mesh(np.asarray(jax.devices()[:4]), ("devices",))

  def local(s, t, b):
    def total(s):
      per_example = value(loss, s, t, b, axis_name="devices", **begin)
      return jnp.sum(per_example), per_example

    gradient, per_example = jax.grad(total, has_aux=True)(s)
    return per_example, gradient

  split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("devices"), out_specs=P("devices")))
  per_example, gradient = split(student, teacher, data)
  whole = jax.grad(lambda s: value(loss, s, teacher, data, **begin).sum())(student)
  np.testing.assert_allclose(per_example, value(loss, student, teacher, data, **begin), rtol=1e-4, atol=1e-6)
  for mine, its in zip(*map(jax.tree.leaves, (gradient, whole)), strict=True):
    np.testing.assert_allclose(mine, its, rtol=1e-3, atol=1e-5)


@every_loss
def test_padding_does_not_matter(name):
  """Examples that `batch["where"]` leaves out may hold anything finite; the mean over the others is as without them."""
  loss = make(name)
  begin = start(loss)
  small = value(loss, *pair(), **begin)
  long = [jax.tree.map(lambda a, b: jnp.concatenate([a, 50 * b]), one, other) for one, other in zip(pair(), pair()[:2])]
  data = {**batch(2 * BATCH), "where": jnp.arange(2 * BATCH) < BATCH}
  padded = value(loss, *long, data, **begin)[:BATCH]
  np.testing.assert_allclose(padded.mean(), small.mean(), rtol=1e-4, atol=1e-6)


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
