"""Labels that are bools: on and off of an output, with no implicit promotion of dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd
from leanax import engine
from leanax.engine.train.forward import plain

KERNEL = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
ON = np.array([[True, False], [True, True], [False, False], [False, True]])


def linear(variables, x, *, train, key):
  return x @ variables["params"]["kernel"], {}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("ignored", [None, 0, 255])
@pytest.mark.parametrize("mask", ["all", "labelled"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_bools_are_zeros_and_ones(outputs, mask, ignored):
  if outputs == 2 and (mask != "all" or ignored is not None):
    return  # refused: labels of several outputs leave no example out
  found = []
  for dtype in (bool, np.int32):
    term = kd.Term("on", kd.sigmoid_cross_entropy(), mask=mask, ignore_label=ignored)
    init, step = engine.training(plain(linear), kd.weighted([term]), optax.sgd(1.0))
    step, state = jax.jit(step), init({"params": {"kernel": jnp.asarray(KERNEL[:, :outputs])}})
    labels = ON[:, :outputs].astype(dtype).squeeze(-1) if outputs == 1 else ON.astype(dtype)
    found.append(step(state, {"image": jnp.asarray(IMAGES), "label": jnp.asarray(labels)}))
  (s, metrics), (t, others) = found
  np.testing.assert_array_equal(s.params["kernel"], t.params["kernel"])
  assert {k: float(v) for k, v in metrics.items()} == {k: float(v) for k, v in others.items()}
  x = IMAGES.astype(np.float64) @ KERNEL[:, :outputs]
  each = np.logaddexp(0, np.where(ON[:, :outputs], -x, x))
  counts = ON[:, :outputs] if ignored == 0 else np.ones_like(each, bool)
  np.testing.assert_allclose(metrics["loss"], each[counts].sum() / (counts.sum() / outputs), rtol=1e-5)
