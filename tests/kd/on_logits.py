"""Shared by the tests of losses on logits: random logits in float64, and the checks that every form of a loss passes,
those with other than default arguments too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from tests.kd.nets import BATCH, CLASSES, batch, labels, logits

ROWS = np.arange(BATCH)


def softmax(x, temperature=1.0):
  return scipy.special.softmax(x / temperature, axis=-1)


def kl(p, q):
  return scipy.special.rel_entr(p, q).sum(-1)


def value(loss, s, t, **kwargs):
  """The numbers of a loss on arrays, in the widest dtype that is switched on."""
  dtype = jnp.zeros(()).dtype
  t = None if t is None else jnp.asarray(t, dtype)
  return loss(jnp.asarray(s, dtype), t, kwargs.pop("batch", batch()), **kwargs)[0]


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
    np.testing.assert_allclose(value(loss, s, t), want, rtol=1e-12, atol=1e-12 * np.abs(want).max())
    gradient = np.asarray(jax.grad(lambda s: value(loss, s, t).sum())(jnp.asarray(s)))
  if slope:
    check_slope(gradient, lambda s: oracle(s, t, labels()), s)
  check_mask(loss, oracle, s, t)
  check_positions(loss, oracle, s, t)
  check_far(loss, teacher)


def check_positions(loss, oracle, s, t):
  """Logits (batch, *positions, classes): one number per position, as numpy; masked ones are 0."""
  for lead in ((2, 3), (3, 1, 2)):
    tall = lambda x, lead=lead: None if x is None else np.reshape(x, (*lead, *x.shape[1:]))
    want = tall(oracle(s, t, labels()))
    data = {"label": jnp.asarray(tall(labels()), jnp.int32)}
    with jax.enable_x64(True):
      np.testing.assert_allclose(value(loss, tall(s), tall(t), batch=data), want, rtol=1e-12, atol=1e-12)
      valid = tall(ROWS % 2 == 0)
      got = value(loss, tall(s), tall(t), batch={**data, "valid": jnp.asarray(valid)})
      np.testing.assert_allclose(got, np.where(valid, want, 0), rtol=1e-12, atol=1e-12)


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
  data = {"label": jnp.asarray(kept[inside], jnp.int32)}
  mask = np.isin(np.arange(CLASSES), kept)
  with jax.enable_x64(True):
    for class_mask in (mask, np.broadcast_to(mask, s.shape)):
      got = value(loss, junk(s), junk(t), batch=data, class_mask=jnp.asarray(class_mask))
      np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    total = lambda s: value(loss, s, junk(t), batch=data, class_mask=jnp.asarray(mask)).sum()
    gradient = np.asarray(jax.grad(total)(jnp.asarray(junk(s))))
  assert np.isfinite(gradient).all() and (gradient[:, ~mask] == 0).all() and (gradient[:, mask] != 0).any()


def check_far(loss, teacher):
  """Logits 10,000 apart, in bfloat16: value and gradient are finite."""
  far = jnp.zeros((BATCH, CLASSES), jnp.bfloat16).at[:, 0].set(1e4)
  for s, t in ((far, -far), (-far, far), (far, jnp.roll(far, 1, axis=-1)), (far, far)):
    run = lambda s, t=t: loss(s, t if teacher else None, batch())[0].sum()
    total, gradient = jax.value_and_grad(run)(s)
    assert bool(jnp.isfinite(total)) and bool(jnp.isfinite(gradient).all()) and gradient.dtype == jnp.bfloat16


def check_minus_infinity(loss):
  """A class that both networks exclude by a logit of -inf is as if it were cut out; no gradient is NaN."""
  s, t = logits(2), logits(3)
  small = value(loss, s[:, :4], t[:, :4], batch={"label": jnp.zeros((BATCH,), jnp.int32)})
  s[:, 4] = t[:, 4] = -np.inf
  data = {"label": jnp.zeros((BATCH,), jnp.int32)}
  np.testing.assert_allclose(value(loss, s, t, batch=data), small, rtol=1e-5, atol=1e-6)
  gradient = jax.grad(lambda s: value(loss, s, t, batch=data).sum())(jnp.asarray(s, jnp.float32))
  assert bool(jnp.isfinite(gradient).all())


def check_mixed(loss, teacher=True):
  """A mixed example has its two labels' numbers, averaged with the weights of their images."""
  s, t = logits(4), logits(5) if teacher else None
  mix, other = np.linspace(0, 1, BATCH), (labels() + 2) % CLASSES
  data = batch(mix=jnp.asarray(mix, jnp.float32), mix_label=jnp.asarray(other, jnp.int32))
  second = value(loss, s, t, batch=batch(label=jnp.asarray(other, jnp.int32)))
  want = mix * value(loss, s, t) + (1 - mix) * second
  np.testing.assert_allclose(value(loss, s, t, batch=data), want, rtol=1e-5)
