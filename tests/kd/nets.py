"""Random activations for the losses' own tests, in float64, and how a loss is called on them."""

import jax
import jax.numpy as jnp
import numpy as np

import kd

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
  return kd.Outputs(jnp.asarray(logits(seed), dtype), {name: jnp.asarray(x, dtype) for name, x in taps.items()})


def batch(**more):
  return {"label": jnp.asarray(labels(), jnp.int32), "id": jnp.arange(BATCH, dtype=jnp.int32), **more}


def value(loss, s, t, **kwargs):
  """The numbers of a loss on one tap a network, each called "tap" (arrays), or on whole Outputs."""
  dtype = jnp.zeros(()).dtype  # float64 where it is switched on
  s, t = (x if isinstance(x, kd.Outputs) else outputs({"tap": x}, dtype=dtype) for x in (s, t))
  return loss(s, t, kwargs.pop("batch", batch()), **kwargs)[0]


def check(loss, oracle, s, t, **kwargs):
  """The loss is the oracle's to 1e-12 in float64 and 1e-5 in float32, and so is its gradient by finite differences.

  Args:
    loss: made with taps called "tap".
    oracle: `oracle(s, t) -> (batch,)` in float64 numpy.
    s: (batch, ...) float64, the student's tap.
    t: the teacher's.
    **kwargs: to the loss, such as aux.
  """
  want = oracle(s, t)
  single = value(loss, s, t, **kwargs)
  np.testing.assert_allclose(single, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
  with jax.enable_x64(True):
    np.testing.assert_allclose(value(loss, s, t, **kwargs), want, rtol=1e-12, atol=1e-12 * np.abs(want).max())
    gradient = np.asarray(
      jax.grad(lambda s: value(loss, kd.Outputs(jnp.asarray(logits(0)), {"tap": s}), t, **kwargs).sum())(jnp.asarray(s))
    )
  rng, h = np.random.default_rng(9), 1e-6
  for _ in range(4):
    direction = rng.normal(size=s.shape)
    slope = (oracle(s + h * direction, t).sum() - oracle(s - h * direction, t).sum()) / (2 * h)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-7)


def check_logits(loss, oracle, s, t, **kwargs):
  """As `check`, of a loss on logits.

  Args:
    loss: on logits alone.
    oracle: `oracle(s, t) -> (batch,)` in float64 numpy.
    s: (batch, classes) float64, the student's logits.
    t: the teacher's.
    **kwargs: to the loss, such as aux.
  """
  data = kwargs.pop("batch", batch())
  want = oracle(s, t)
  single = loss(jnp.asarray(s, jnp.float32), jnp.asarray(t, jnp.float32), data, **kwargs)[0]
  np.testing.assert_allclose(single, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
  with jax.enable_x64(True):
    mine, its = jnp.asarray(s), jnp.asarray(t)
    per_example = loss(mine, its, data, **kwargs)[0]
    np.testing.assert_allclose(per_example, want, rtol=1e-12, atol=1e-12 * np.abs(want).max())
    gradient = np.asarray(jax.grad(lambda s: loss(s, its, data, **kwargs)[0].sum())(mine))
  rng, h = np.random.default_rng(9), 1e-6
  for _ in range(4):
    direction = rng.normal(size=s.shape)
    slope = (oracle(s + h * direction, t).sum() - oracle(s - h * direction, t).sum()) / (2 * h)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-7)
