"""Every loss of kd, found by walking the package, through one battery. Adding a file to kd/ is enough to be tested.

A loss is made with its default arguments. It gets float logits of student and teacher and a batch with labels. Losses
that read activations have a battery of their own, `test_kd_taps.py`.
"""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import kd
from core.methods import methods
from tests.conformance.exceptions import cases

BATCH, CLASSES = 8, 5
LOSSES = {name: make for name, make in methods(kd).items() if "student" not in inspect.signature(make).parameters}
CHECKS = []


def every_loss(test):
  """Runs a check for each loss, with the exceptions that have a reason."""
  check = test.__name__.removeprefix("test_")
  CHECKS.append(check)
  return pytest.mark.parametrize("name", cases("kd", LOSSES, check))(test)


def logits(seed, dtype=np.float32, scale=2.0):
  return jnp.asarray(scale * np.random.default_rng(seed).normal(size=(BATCH, CLASSES)), dtype)


def batch():
  return {"label": jnp.arange(BATCH, dtype=jnp.int32) % CLASSES, "id": jnp.arange(BATCH, dtype=jnp.int32)}


def value(name, student, teacher, data=None, **kwargs):
  loss = LOSSES[name]()
  shape = kd.Outputs(jax.ShapeDtypeStruct((BATCH, CLASSES), jnp.float32))
  if getattr(loss, "init", None) is not None:
    aux, aux_state = loss.init(jax.random.key(0), shape, shape, None)
    kwargs = {"aux": aux, "aux_state": aux_state, **kwargs}
  return loss(student, teacher, batch() if data is None else data, **kwargs)[0]


def total(name, student, teacher, **kwargs):
  return jnp.sum(value(name, student, teacher, **kwargs))


def test_the_walk_finds_them():
  assert {"hinton", "hard_labels", "soft_labels", "logit_l2"} <= set(LOSSES)


@every_loss
def test_full_signature(name):
  parameters = inspect.signature(LOSSES[name]()).parameters
  assert list(parameters)[:3] == ["student", "teacher", "batch"]
  assert {"aux", "aux_state", "key", "axis_name", "where", "step"} <= set(parameters)
  per_example = value(name, logits(0), logits(1))
  assert per_example.shape == (BATCH,) and per_example.dtype == jnp.float32


@every_loss
def test_relational_says_whether_other_examples_matter(name):
  """Other examples change an example's number where the loss is relational, and nowhere else."""
  student, teacher = logits(0), logits(1)
  changed = value(name, student.at[1:].multiply(-3.0), teacher.at[1:].add(jnp.arange(CLASSES, dtype=jnp.float32)))
  same = np.allclose(changed[0], value(name, student, teacher)[0], rtol=1e-6, atol=0)
  assert kd.relational(LOSSES[name]()) is not same


@every_loss
def test_reads_the_teacher(name):
  assert not np.allclose(value(name, logits(0), logits(1)), value(name, logits(0), logits(2)))


@every_loss
def test_zero_at_the_teacher(name):
  np.testing.assert_allclose(value(name, logits(0), logits(0)), 0.0, atol=1e-6)


@every_loss
def test_flat_at_the_teacher(name):
  gradient = jax.grad(partial(total, name))(logits(0), logits(0))
  np.testing.assert_allclose(gradient, 0.0, atol=2e-6)


@every_loss
def test_shift_invariant(name):
  student, teacher = logits(0), logits(1)
  shift = jnp.arange(BATCH, dtype=jnp.float32)[:, None] - 3.0
  np.testing.assert_allclose(value(name, student + shift, teacher), value(name, student, teacher), rtol=2e-5, atol=2e-6)


@every_loss
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_finite_at_a_gap_of_ten_thousand(name, dtype):
  far = jnp.zeros((BATCH, CLASSES), dtype).at[:, 0].set(1e4)
  for student, teacher in ((far, -far), (-far, far), (far, jnp.roll(far, 1, axis=-1)), (far, far)):
    assert jnp.all(jnp.isfinite(value(name, student, teacher)))
    gradient = jax.grad(partial(total, name))(student.astype(jnp.float32), teacher)
    assert jnp.all(jnp.isfinite(gradient))


@every_loss
@pytest.mark.parametrize("junk", [7.0, np.inf, -np.inf, np.nan])
def test_masked_classes_do_not_exist(name, junk):
  """With `where=`, a loss is the loss of the classes that count, whatever the others hold; they get zero gradient."""
  where = jnp.asarray([True, True, False, True, False])
  labels = {"label": jnp.asarray([0, 1, 2] * 3, jnp.int32)[:BATCH]}  # among the classes that count
  kept = np.flatnonzero(where)
  whole = {"label": jnp.asarray(kept)[labels["label"]].astype(jnp.int32)}
  student, teacher = jnp.where(where, logits(0), junk), jnp.where(where, logits(1), junk)
  small = value(name, logits(0)[:, kept], logits(1)[:, kept], labels)
  np.testing.assert_allclose(value(name, student, teacher, whole, where=where), small, rtol=1e-5, atol=1e-6)
  gradient = jax.grad(lambda s: jnp.sum(value(name, s, teacher, whole, where=where)))(student)
  assert jnp.all(gradient[:, ~np.asarray(where)] == 0) and jnp.all(jnp.isfinite(gradient))


@every_loss
def test_gradient_is_the_finite_difference(name):
  with jax.enable_x64(True):
    student, teacher = logits(0, np.float64), logits(1, np.float64)
    gradient = jax.grad(partial(total, name))(student, teacher)
    for seed in range(3):
      direction, h = logits(10 + seed, np.float64), 1e-5
      slope = (total(name, student + h * direction, teacher) - total(name, student - h * direction, teacher)) / (2 * h)
      np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=1e-7, atol=1e-8)


@every_loss
def test_the_teacher_gets_exactly_no_gradient(name):
  gradient = jax.grad(lambda t: total(name, logits(0), t))(logits(1))
  assert jnp.all(gradient == 0)


@every_loss
def test_split_over_devices(name):
  """Four devices with a quarter of the batch each give the same numbers and gradients as one with all of it."""
  student, teacher, data = logits(0), logits(1), batch()
  mesh = Mesh(np.asarray(jax.devices()[:4]), ("devices",))

  def local(s, t, b):
    def loss(s):
      per_example = value(name, s, t, b, axis_name="devices")
      return jnp.sum(per_example), per_example

    gradient, per_example = jax.grad(loss, has_aux=True)(s)
    return per_example, gradient

  split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("devices"), out_specs=P("devices")))
  per_example, gradient = split(student, teacher, data)
  # Not closer: at a temperature of 16 a divergence is what is left of terms a hundred times its size.
  np.testing.assert_allclose(per_example, value(name, student, teacher), rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(gradient, jax.grad(partial(total, name))(student, teacher), rtol=1e-5, atol=1e-7)


@every_loss
def test_padding_does_not_matter(name):
  """Examples that `batch["where"]` leaves out may hold anything finite; the mean over the others is as without them."""
  data = {"label": jnp.arange(2 * BATCH, dtype=jnp.int32) % CLASSES, "where": jnp.arange(2 * BATCH) < BATCH}
  student, teacher = (jnp.concatenate([logits(seed), 50 * logits(seed + 5)]) for seed in (0, 1))
  padded = value(name, student, teacher, data)[:BATCH]
  np.testing.assert_allclose(padded.mean(), value(name, logits(0), logits(1)).mean(), rtol=2e-5)


@every_loss
def test_reads_outputs_and_arrays_alike(name):
  plain = value(name, logits(0), logits(1))
  np.testing.assert_array_equal(value(name, kd.Outputs(logits(0)), kd.Outputs(logits(1))), plain)
