"""Shared by the tests of losses on logits: random logits in float64, and the checks that every form of a loss passes,
those with other than default arguments too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from tests.kd.nets import BATCH, CLASSES, batch, labels, logits, value_and_gradient

ROWS = np.arange(BATCH)


def softmax(x, temperature=1.0):
  return scipy.special.softmax(x / temperature, axis=-1)


def kl(p, q):
  return scipy.special.rel_entr(p, q).sum(-1)


def value(loss, s, t, **kwargs):
  """The numbers of a loss on arrays, in the widest dtype that is switched on."""
  return _program(loss)(*wide(s, t), kwargs.pop("batch", batch()), kwargs)


@functools.cache
def _program(loss):
  """One program for each loss and shape, not one for each operation."""
  return jax.jit(lambda s, t, data, more: loss(s, t, data, **more)[0])


def wide(*arrays):
  """The arrays in the widest dtype that is switched on; None stays."""
  dtype = jax.dtypes.canonicalize_dtype(float)
  return tuple(None if x is None else jnp.asarray(x, dtype) for x in arrays)


def check(loss, oracle, teacher=True, slope=True):
  """The loss and its gradient are the oracle's; classes left out do not exist; a gap of 10,000 is finite.

  Args:
    loss: made of any arguments.
    oracle: `oracle(s, t, labels) -> (batch,)` in float64 numpy; t is None without a teacher.
    teacher: whether it reads one.
    slope: whether its gradient is that of its value.
  """
  s, t = logits(0), logits(1) if teacher else None
  want = oracle(s, t, labels())
  single = value(loss, s, t)
  assert single.shape == (BATCH,) and single.dtype == jnp.float32
  np.testing.assert_allclose(single, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
  with jax.enable_x64(True):
    double, gradient = value_and_gradient(lambda s: loss(s, *wide(t), batch())[0], *wide(s))
  np.testing.assert_allclose(double, want, rtol=1e-12, atol=1e-12 * np.abs(want).max())
  if slope:
    check_slope(gradient, lambda s: oracle(s, t, labels()), s)
  check_mask(loss, oracle, s, t)
  check_positions(loss, oracle, s, t)
  check_far(loss, teacher)


def check_positions(loss, oracle, s, t):
  """Logits (batch, *positions, classes): one number per position, as numpy; masked ones are 0."""
  leads = ((2, 3), (3, 1, 2))
  valid = ROWS % 2 == 0

  @jax.jit
  def run(s, t, label, valid):
    """The numbers of each form, without and with `valid`."""

    def of(lead):
      tall = lambda x: None if x is None else jnp.reshape(x, (*lead, *x.shape[1:]))
      data = {"label": tall(label)}
      return [loss(tall(s), tall(t), d)[0] for d in (data, {**data, "valid": tall(valid)})]

    return [of(lead) for lead in leads]

  with jax.enable_x64(True):
    got = run(*wide(s, t), jnp.asarray(labels(), jnp.int32), valid)
  want = oracle(s, t, labels())
  for lead, (plain, masked) in zip(leads, got, strict=True):
    np.testing.assert_allclose(plain, want.reshape(lead), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(masked, np.where(valid, want, 0).reshape(lead), rtol=1e-12, atol=1e-12)


def check_slope(gradient, f, s, h=1e-6):
  """The gradient is that of f's sum, class by class."""
  for c in range(CLASSES):
    step = h * np.eye(CLASSES)[c]
    np.testing.assert_allclose(gradient[:, c], (f(s + step) - f(s - step)) / (2 * h), rtol=1e-6, atol=1e-7)


def check_mask(loss, oracle, s, t):
  """Three of the five classes count, whatever the others hold."""
  kept, inside = np.array([0, 1, 3]), ROWS % 3
  junk = lambda x: None if x is None else np.where(np.isin(np.arange(CLASSES), kept), x, np.nan)
  want = oracle(s[:, kept], None if t is None else t[:, kept], inside)
  mask = np.isin(np.arange(CLASSES), kept)

  @jax.jit
  def run(s, t, label, mask):
    """The numbers and the gradient of a mask of classes, and the numbers of a mask of each row."""
    of = lambda s, mask: loss(s, t, {"label": label}, class_mask=mask)[0]
    return *value_and_gradient(lambda s: of(s, mask), s), of(s, jnp.broadcast_to(mask, s.shape))

  with jax.enable_x64(True):
    got, gradient, by_row = run(*wide(junk(s), junk(t)), jnp.asarray(kept[inside], jnp.int32), mask)
  for numbers in (got, by_row):
    np.testing.assert_allclose(numbers, want, rtol=1e-12, atol=1e-12)
  gradient = np.asarray(gradient)
  assert np.isfinite(gradient).all() and (gradient[:, ~mask] == 0).all() and (gradient[:, mask] != 0).any()


def check_far(loss, teacher):
  """Logits 10,000 apart, in bfloat16: value and gradient are finite."""
  far = np.zeros((BATCH, CLASSES), jnp.bfloat16)
  far[:, 0] = 1e4
  run = jax.jit(jax.value_and_grad(lambda s, t: loss(s, t if teacher else None, batch())[0].sum()))
  for s, t in ((far, -far), (-far, far), (far, np.roll(far, 1, axis=-1)), (far, far)):
    total, gradient = run(s, t)
    assert np.isfinite(total) and gradient.dtype == jnp.bfloat16 and np.isfinite(np.asarray(gradient)).all()


def check_minus_infinity(loss):
  """A class that both networks exclude by a logit of -inf is as if it were cut out; no gradient is NaN."""
  s, t = logits(2), logits(3)
  data = {"label": np.zeros(BATCH, np.int32)}
  small = value(loss, s[:, :4], t[:, :4], batch=data)
  s[:, 4] = t[:, 4] = -np.inf
  got, gradient = value_and_gradient(lambda s: loss(s, *wide(t), data)[0], *wide(s))
  np.testing.assert_allclose(got, small, rtol=1e-5, atol=1e-6)
  assert np.isfinite(gradient).all()


def check_mixed(loss, teacher=True):
  """A mixed example has its two labels' numbers, averaged with the weights of their images."""
  s, t = logits(4), logits(5) if teacher else None
  mix, other = np.linspace(0, 1, BATCH), (labels() + 2) % CLASSES
  data = batch(mix=jnp.asarray(mix, jnp.float32), mix_label=jnp.asarray(other, jnp.int32))
  second = value(loss, s, t, batch=batch(label=jnp.asarray(other, jnp.int32)))
  want = mix * value(loss, s, t) + (1 - mix) * second
  np.testing.assert_allclose(value(loss, s, t, batch=data), want, rtol=1e-5)
