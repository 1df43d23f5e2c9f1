"""Optimizers against numpy and optax, schedules by hand, labels by table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from leanax.core.errors import UserError
from leanax.engine.train import optim
from leanax.engine.train.labels import labels
from tests.numbers import array


def tree():
  rng = np.random.default_rng(0)
  draw = lambda *shape: array(rng.normal(size=shape), jnp.float32)
  return {
    "params": {"dense": {"kernel": draw(3, 2), "bias": draw(2)}, "norm": {"scale": draw(2)}},
    "qparams": {"dense": draw(2)},
    "aux": {"regressor": {"kernel": draw(2, 2)}},
  }


def grads(i):
  return jax.tree.map(lambda p: jnp.sin(p * (i + 1)), tree())


def run(tx, steps=4):
  params = tree()
  tx = optim.lenient(tx)
  s, update = tx.init(params), jax.jit(tx.update)
  for i in range(steps):
    updates, s = update(grads(i), s, params, step=jnp.int32(i))
    params = optax.apply_updates(params, updates)
  return params


def sgd64(params, lr, momentum, nesterov, decay, clip, rates):
  """The updates of the papers, leaf by leaf, in float64."""
  flat, where = jax.tree.flatten(jax.tree.map(np.float64, params))
  names = jax.tree.leaves(labels(params))
  velocity = [np.zeros_like(p) for p in flat]
  for i in range(4):
    g = [np.float64(x) for x in jax.tree.leaves(grads(i))]
    norm = np.sqrt(sum((x**2).sum() for x in g))
    for k, name in enumerate(names):
      x = g[k] * min(1.0, clip / norm) + (decay * flat[k] if name == "kernel" else 0.0)
      velocity[k] = momentum * velocity[k] + x
      step = momentum * velocity[k] + x if nesterov else velocity[k]
      flat[k] = flat[k] - lr * rates.get(name, 1.0) * step
  return jax.tree.unflatten(where, flat)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_the_oracle(nesterov):
  rates = {"scale": 0.1, "aux": 0.0}
  tx = optim.optimizer("sgd", 0.1, nesterov=nesterov, weight_decay=0.05, clip_norm=0.7, rates=rates)
  got, expected = run(tx), sgd64(tree(), 0.1, 0.9, nesterov, 0.05, 0.7, rates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)
  np.testing.assert_array_equal(got["aux"]["regressor"]["kernel"], tree()["aux"]["regressor"]["kernel"])


def test_adamw_equals_the_oracle():
  rate = optim.schedule("step", 0.1, 4, milestones=(2,), factor=0.5)
  got = run(optim.optimizer("adamw", rate, weight_decay=0.1))
  p, m, v = np.float64(tree()["params"]["dense"]["kernel"]), 0.0, 0.0
  b = np.float64(tree()["params"]["dense"]["bias"])
  mb, vb = 0.0, 0.0
  for i in range(4):
    lr = 0.1 if i < 2 else 0.05
    g, gb = (np.float64(grads(i)["params"]["dense"][k]) for k in ("kernel", "bias"))
    m, v, mb, vb = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, 0.9 * mb + 0.1 * gb, 0.999 * vb + 0.001 * gb**2
    c, d = 1 - 0.9 ** (i + 1), 1 - 0.999 ** (i + 1)
    p = p - lr * ((m / c) / (np.sqrt(v / d) + 1e-8) + 0.1 * p)
    b = b - lr * ((mb / c) / (np.sqrt(vb / d) + 1e-8))
  np.testing.assert_allclose(got["params"]["dense"]["kernel"], p, atol=1e-5)
  np.testing.assert_allclose(got["params"]["dense"]["bias"], b, atol=1e-5)


def test_adam_is_adamw_without_decay():
  jax.tree.map(np.testing.assert_array_equal, run(optim.optimizer("adam", 0.1)), run(optim.optimizer("adamw", 0.1)))


def test_schedules_by_hand():
  cosine = optim.schedule("cosine", 1.0, 12, warmup=4, end=0.2)
  values = [float(cosine(i)) for i in (0, 3, 4, 8, 12, 50)]
  np.testing.assert_allclose(values, [0.25, 1.0, 1.0, 0.6, 0.2, 0.2], rtol=1e-6)
  step = optim.schedule("step", 0.8, 10, warmup=2, milestones=(5, 7))
  np.testing.assert_allclose(
    [float(step(i)) for i in (0, 1, 4, 5, 6, 7)], [0.4, 0.8, 0.8, 0.08, 0.08, 0.008], rtol=1e-5
  )
  constant = optim.schedule("constant", 0.3, 10)
  np.testing.assert_allclose([float(constant(i)) for i in (0, 9)], [0.3, 0.3])


def test_cosine_is_optaxs_after_the_warmup():
  ours, theirs = optim.schedule("cosine", 0.5, 100, end=0.05), optax.cosine_decay_schedule(0.5, 100, 0.1)
  steps = np.arange(0, 120, 7)
  with jax.numpy_dtype_promotion("standard"):
    expected = [float(theirs(i)) for i in steps]
  np.testing.assert_allclose([float(ours(i)) for i in steps], expected, rtol=1e-5)


def test_labels():
  extra = tree()
  extra["params"]["layers"] = {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))}  # as a scan stacks them
  extra["params"]["w"] = jnp.ones((2, 2))
  got = labels(extra, overrides=(("params/w", "other"),))
  assert got == {
    "params": {
      "dense": {"kernel": "kernel", "bias": "other"},
      "norm": {"scale": "other"},
      "layers": {"kernel": "kernel", "bias": "other"},
      "w": "other",
    },
    "qparams": {"dense": "scale"},
    "aux": {"regressor": {"kernel": "aux"}},
  }
  assert labels(extra)["params"]["w"] == "kernel"


MISTAKES = {
  "unknown optimizer 'sdg'; did you mean 'sgd'": lambda: optim.optimizer("sdg", 0.1),
  "'adam' has no weight decay": lambda: optim.optimizer("adam", 0.1, weight_decay=0.1),
  "unknown label 'scales'; did you mean 'scale'": lambda: optim.optimizer("sgd", 0.1, rates={"scales": 1.0}),
  "unknown schedule 'cosin'; did you mean 'cosine'": lambda: optim.schedule("cosin", 0.1, 5),
  "warmup is 9 steps of 5": lambda: optim.schedule("cosine", 0.1, 5, warmup=9),
  "unknown label 'kernal'": lambda: labels(tree(), (("*", "kernal"),)),
  "label rule 'params/nothing' matches nothing": lambda: labels(tree(), (("params/nothing", "other"),)),
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_are_one_sentence(sentence):
  with pytest.raises(UserError, match=sentence):
    MISTAKES[sentence]()


@pytest.mark.parametrize("tx", [0.1, optax.adam, None])
def test_objects_that_are_not_optimizers_are_refused(tx):
  with pytest.raises(UserError, match="expected a transformation of optax, such as optax.adam"):
    optim.lenient(tx)
