"""The norm of each term's gradient: against a float64 oracle, against the step's own, and on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import kd
from kd import Term, weighted
from leanax import engine
from leanax.engine.train import optim
from leanax.engine.train.forward import plain
from leanax.engine.train.step import training
from tests.engine import nets


def of_batches(data, step, *, seed, part):
  index, count = part
  size = data["image"].shape[1] // count
  return {k: jax.lax.dynamic_slice_in_dim(v[step], index * size, size) for k, v in data.items()}


def data(steps=3, size=8):
  batches = [nets.batch(size, i) for i in range(steps)]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)


def linear(variables, x, *, train, key):
  return x @ variables["params"]["kernel"], {}


def test_a_float64_oracle():
  rng = np.random.default_rng(0)
  w, tw = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
  rising = lambda i: 0.7 * (1.0 + i.astype(jnp.float32))
  objective = weighted([Term("hard", kd.hard_labels(), 0.3), Term("soft", kd.hinton(2.0), rising)])
  norm = engine.term_norm(plain(linear), objective, teacher=lambda v, x: x @ v)
  norms = engine.term_norms(norm, objective, of_batches)
  s = training(plain(linear), objective, optim.optimizer("sgd", 0.1)).init(
    {"params": {"kernel": jnp.asarray(w, jnp.float32)}}
  )
  got = norms(2, s, data(), jnp.asarray(tw, jnp.float32))
  batch = nets.batch(8, 2)
  x, onehot = np.asarray(batch["image"], np.float64), np.eye(3)[np.asarray(batch["label"])]
  hard = 0.3 * (scipy.special.softmax(x @ w, -1) - onehot) / 8
  soft = 0.7 * 3 * 2 * (scipy.special.softmax(x @ w / 2, -1) - scipy.special.softmax(x @ tw / 2, -1)) / 8
  expected = {"hard/grad_norm": np.linalg.norm(x.T @ hard), "soft/grad_norm": np.linalg.norm(x.T @ soft)}
  assert got.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-5)


def with_dropout(variables, x, *, train, key):
  return nets.mlp(variables, jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x, 0.0), train=train, key=key)


def test_one_term_has_the_norm_of_the_step():
  """With the step's own batch, randomness and averages it is the very gradient that the step takes."""
  objective, tx = weighted([Term("soft", kd.hinton(2.0), 0.7)]), optim.optimizer("sgd", 0.1)
  init, step = training(plain(with_dropout), objective, tx, itself=True, ema=0.5, accumulate=2, seed=3)
  norms = engine.term_norms(
    engine.term_norm(plain(with_dropout), objective, itself=True, accumulate=2), objective, of_batches
  )
  s = init(nets.variables())
  for i in range(3):
    found = norms(i, s, data(6), seed=3)
    halves = nets.batch(8, 2 * i), nets.batch(8, 2 * i + 1)
    s, metrics = step(s, jax.tree.map(lambda *x: jnp.concatenate(x), *halves))
    np.testing.assert_allclose(found["soft/grad_norm"], metrics["grad_norm"], rtol=1e-6)


@pytest.mark.parametrize("mode", ["pmap", "shard_map", "mesh"])
def test_devices_give_the_same_numbers(mode):
  objective = nets.distillation()
  norm = engine.term_norm(nets.student, objective, teacher=nets.teacher)
  s = training(nets.student, objective, optim.optimizer("sgd", 0.1)).init(nets.variables())
  one, many = (
    engine.term_norms(norm, objective, of_batches, mode=way)(1, s, data(), nets.variables(5)) for way in ("jit", mode)
  )
  assert one.keys() == many.keys()
  np.testing.assert_allclose(list(many.values()), list(one.values()), rtol=1e-5)
