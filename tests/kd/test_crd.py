"""Contrastive distillation against the paper's equations with loops, its negatives, its constant and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import kd
from kd.losses import crd
from kd.losses.crd import log_mean
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, batch, check, maps, outputs, value
from tests.kd.oracles import begin, layer64

N, K, WIDTH, TAU = 20, 7, 4, 0.3
KEY = jax.random.key(5)
draw = jax.jit(crd.draw, static_argnums=(2, 3))


def make(**more):
  return kd.crd("tap", "tap", **{"examples": N, "negatives": K, "width": WIDTH, "temperature": TAU, **more})


def unit64(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embedded64(given, which, x):
  return unit64(layer64(given["aux"][which], x.reshape(len(x), -1)))


def oracle(given, s, t, ids=range(BATCH)):
  z = N * scipy.special.hyp0f1(WIDTH / 2, 1 / (4 * TAU**2))
  drawn = np.asarray(draw(KEY, jnp.asarray(list(ids), jnp.int32), K, N))

  def h(v, w):
    p = np.exp(v @ w / TAU) / z
    return p / (p + K / N)

  out = np.zeros(len(s))
  for x, which, bank in ((s, "student", "teacher"), (t, "teacher", "student")):
    bank = np.float64(given["aux_state"][bank])
    for row, (v, i) in enumerate(zip(embedded64(given, which, x), ids, strict=True)):
      out[row] -= np.log(h(v, bank[i])) + sum(np.log(1 - h(v, bank[j])) for j in drawn[row])
  return out


def test_value_and_gradient_are_the_papers():
  s, t = maps(0, (2, 2, 3)), maps(1, (7,))
  given = begin(make(), s, t)
  check(make(), lambda s, t: oracle(given, s, t), s, t, key=KEY, **given)


def test_by_hand():
  # Everything is the same unit vector, and Z and K / n are 2 * 0F1 and 1 / 2: h = 1 / (1 + Z / (2 e^2)).
  loss = kd.crd("tap", "tap", examples=2, negatives=1, width=1, temperature=0.5)
  one = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
  given = {
    "aux": {"student": one, "teacher": one},
    "aux_state": {"student": jnp.ones((2, 1)), "teacher": jnp.ones((2, 1))},
  }
  h = 1 / (1 + np.cosh(2.0) * np.exp(-2.0))  # on a line, the mean over unit vectors is a hyperbolic cosine
  got = value(loss, np.ones((2, 1)), np.ones((2, 1)), batch={"id": jnp.arange(2)}, key=KEY, **given)
  np.testing.assert_allclose(got, 2 * -(np.log(h) + np.log(1 - h)), rtol=1e-5)


@pytest.mark.parametrize(("width", "temperature"), [(2, 0.07), (128, 0.07), (5, 1.0), (64, 0.5)])
def test_the_constant_is_what_the_first_batch_would_estimate(width, temperature):
  np.testing.assert_allclose(
    np.exp(log_mean(width, temperature)), scipy.special.hyp0f1(width / 2, 1 / (4 * temperature**2)), rtol=1e-10
  )
  if temperature >= 0.5:  # the mean of a heavy tail is not sampled easily
    rng = np.random.default_rng(0)
    v, bank = (unit64(rng.normal(size=(400, width))) for _ in range(2))
    np.testing.assert_allclose(np.exp(log_mean(width, temperature)), np.exp(v @ bank.T / temperature).mean(), rtol=0.02)
  assert np.isfinite(log_mean(128, 1e-3))


def test_negatives_are_other_examples_the_same_in_any_batch():
  ids = jnp.asarray([3, 0, 19, 7], jnp.int32)
  drawn = np.asarray(draw(KEY, ids, 4000, N))
  assert drawn.min() == 0 and drawn.max() == N - 1
  for i, row in zip(np.asarray(ids), drawn, strict=True):
    counts = np.bincount(row, minlength=N)
    assert counts[i] == 0 and np.all(np.delete(counts, i) > 130)  # of 4000 / 19 = 210, sd 14
  np.testing.assert_array_equal(draw(KEY, ids[2:], 4000, N), drawn[2:])
  assert np.any(drawn != np.asarray(draw(jax.random.key(6), ids, 4000, N)))


def remembered64(given, s, t, ids, momentum=0.5):
  out = {}
  for which, x in (("student", s), ("teacher", t)):
    bank = np.array(given["aux_state"][which], np.float64)
    out[which] = bank.copy()
    for i, v in zip(ids, embedded64(given, which, x), strict=True):
      out[which][i] = unit64(momentum * bank[i] + (1 - momentum) * v)
  return out


@pytest.mark.parametrize("momentum", [0.5, 0.0, 0.9])
def test_the_banks_move_towards_the_embeddings(momentum):
  s, t = maps(0, (5,)), maps(1, (7,))
  loss = make(momentum=momentum)
  given = begin(loss, s, t)
  ids = [4, 19, 0, 7, 4, 2]  # twice 4: the last one stands
  valid = np.array([1, 1, 1, 0, 1, 1], bool)
  data = {"id": jnp.asarray(ids, jnp.int32), "valid": jnp.asarray(valid)}
  student, teacher = outputs({"tap": s}), outputs({"tap": t})
  remember = jax.jit(lambda data: loss(student, teacher, data, key=KEY, **given)[1])
  state = remember(data)
  want = remembered64(given, s[valid], t[valid], np.asarray(ids)[valid], momentum)
  for which in want:
    np.testing.assert_allclose(state[which], want[which], atol=1e-6)
  state = remember({**data, "valid": jnp.asarray(~valid)})
  np.testing.assert_array_equal(np.delete(state["student"], 7, 0), np.delete(given["aux_state"]["student"], 7, 0))


def test_over_devices_the_banks_are_the_same_as_on_one():
  s, t = (jnp.float32(np.concatenate([maps(seed, (5,)), maps(seed + 5, (5,))])[:8]) for seed in (0, 1))
  loss = make()
  given = jax.tree.map(jnp.float32, begin(loss, np.asarray(s), np.asarray(t)))
  data = {"id": jnp.asarray([4, 19, 0, 7, 4, 2, 11, 1], jnp.int32), "valid": jnp.arange(8) != 6}

  def step(s, t, data, axis_name=None):
    student, teacher = kd.Outputs(s, {"tap": s}), kd.Outputs(t, {"tap": t})
    return loss(student, teacher, data, key=KEY, axis_name=axis_name, **given)[:2]

  split, same = jax.sharding.PartitionSpec("devices"), jax.sharding.PartitionSpec()
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("devices",))
  many = jax.shard_map(lambda *a: step(*a, "devices"), mesh=mesh, in_specs=split, out_specs=(split, same))
  whole = jax.jit(step)(s, t, data)
  for got, want in zip(jax.tree.leaves(jax.jit(many)(s, t, data)), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_training_tells_examples_apart():
  """A student that starts at random learns, through its embedding alone, to be nearest to its own teacher."""
  rng = np.random.default_rng(0)
  s, t = rng.normal(size=(N, 12)), rng.normal(size=(N, 12))
  loss = make(temperature=0.2, width=8)
  given = jax.tree.map(jnp.float32, begin(loss, s, t))
  student, teacher = (kd.Outputs(jnp.float32(x), {"tap": jnp.float32(x)}) for x in (s, t))
  data = {"id": jnp.arange(N, dtype=jnp.int32)}

  @jax.jit
  def step(given, i):
    def total(aux):
      key = jax.random.fold_in(KEY, i)
      per_example, state, _ = loss(student, teacher, data, key=key, aux=aux, aux_state=given["aux_state"])
      return per_example.mean(), state

    slope, state = jax.grad(total, has_aux=True)(given["aux"])
    return {"aux": jax.tree.map(lambda a, g: a - 0.1 * g, given["aux"], slope), "aux_state": state}

  for i in range(400):
    given = step(given, i)
  v, w = (embedded64(given, which, x) for which, x in (("student", s), ("teacher", t)))
  assert np.mean(np.argmax(v @ w.T, 1) == np.arange(N)) > 0.9


def test_mistakes_are_named():
  with pytest.raises(UserError, match="crd: expected one tap of the student and one of the teacher"):
    kd.crd(("a", "b"), ("a", "b"), examples=4)
  with pytest.raises(UserError, match="crd: examples is 1; expected a whole number, 2 or more"):
    kd.crd("tap", "tap", examples=1)
  with pytest.raises(UserError, match="crd: negatives is 0; expected a whole number, 1 or more"):
    make(negatives=0)
  with pytest.raises(UserError, match="crd: momentum is 1; expected a number from 0 to below 1"):
    make(momentum=1)
  s, t = maps(0, (5,)), maps(1, (7,))
  given = begin(make(), s, t)
  with pytest.raises(UserError, match="it needs a 'key', and 'id' in the batch"):
    value(make(), s, t, **given)
  with pytest.raises(UserError, match="it needs a 'key', and 'id' in the batch"):
    value(make(), s, t, batch={}, key=KEY, **given)
  for wrong in (N, -1):
    got = value(make(), s, t, batch=batch(id=jnp.asarray([0, 1, wrong, 3, 4, 5], jnp.int32)), key=KEY, **given)
    assert np.flatnonzero(np.isnan(got)).tolist() == [2]
