"""Random activations for the losses' own tests, in float64, and how a loss is called on them."""

import jax
import jax.numpy as jnp
import numpy as np

import kd
from tests.numbers import array

BATCH, CLASSES = 6, 5


def maps(seed, shape, scale=1.0):
  return scale * np.random.default_rng(seed).normal(size=(BATCH, *shape))


def logits(seed, scale=2.0):
  return maps(seed, (CLASSES,), scale)


def labels():
  return np.arange(BATCH) % CLASSES


def outputs(taps, seed=0, dtype=np.float32):
  """Outputs with these taps: {name: array}."""
  taps = {name: np.asarray(x, dtype) for name, x in taps.items()}
  return kd.Outputs(array(logits(seed), dtype), {name: array(x, dtype) for name, x in taps.items()})


def batch(**more):
  return {"label": array(labels(), jnp.int32), "id": array(np.arange(BATCH), jnp.int32), **more}


def value(loss, s, t, **kwargs):
  """The numbers of a loss on one tap per network, each called "tap" (arrays), or on whole Outputs."""
  dtype = jnp.zeros(()).dtype  # float64 where it is switched on
  s, t = (x if isinstance(x, kd.Outputs) else outputs({"tap": x}, dtype=dtype) for x in (s, t))
  data = kwargs.pop("batch", batch())
  return jax.jit(lambda s, t: loss(s, t, data, **kwargs)[0])(s, t)  # one program, not one for each operation


def check(loss, oracle, s, t, **kwargs):
  """A loss on one tap per network is the oracle's, and so is its gradient; see `agree`.

  Args:
    loss: made with taps called "tap".
    oracle: `oracle(s, t) -> (batch,)` in float64 numpy.
    s: (batch, ...) float64, the student's tap.
    t: the teacher's.
    **kwargs: to the loss, such as aux.
  """

  def call(s):
    return value(loss, kd.Outputs(jnp.asarray(logits(0), s.dtype), {"tap": s}), t, **kwargs)

  agree(call, lambda s: oracle(s, t), s)


def check_logits(loss, oracle, s, t, **kwargs):
  """As `check`, of a loss on logits (batch, classes)."""
  data = kwargs.pop("batch", batch())
  agree(lambda s: loss(s, jnp.asarray(t, s.dtype), data, **kwargs)[0], lambda s: oracle(s, t), s)


def value_and_gradient(call, s):
  """`call(s)`, (batch,), and the gradient of its sum, of one compiled program."""

  def total(s):
    per_example = call(s)
    return per_example.sum(), per_example

  (_, per_example), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(s)
  return per_example, gradient


def agree(call, oracle, s):
  """`call(s)` is `oracle(s)`, (batch,), to 1e-12 in float64 and 1e-5 in float32; its gradient by finite differences."""
  want = oracle(s)
  largest = np.abs(want).max()
  np.testing.assert_allclose(jax.jit(call)(jnp.asarray(s, jnp.float32)), want, rtol=1e-5, atol=1e-5 * largest)
  with jax.enable_x64(True):
    double, gradient = map(np.asarray, value_and_gradient(call, jnp.asarray(s)))
  np.testing.assert_allclose(double, want, rtol=1e-12, atol=1e-12 * largest)
  rng, h = np.random.default_rng(9), 1e-6
  for _ in range(4):
    direction = rng.normal(size=s.shape)
    slope = (oracle(s + h * direction).sum() - oracle(s - h * direction).sum()) / (2 * h)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-7)
