"""Mutual learning against a loop over two models and against numpy, and mistakes about peers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import kd
import sparsity
from kd import Term, weighted
from leanax import engine
from leanax.core.errors import UserError
from leanax.engine.train import mutual, optim, parallel, seeds
from leanax.engine.train.forward import plain
from leanax.engine.train.step import training
from tests.engine import nets

TERMS = (Term("hard", kd.hard_labels(), 0.5), Term("peer", kd.hinton(1.0), 2.0))


def start(tx, peers, **kwargs):
  init = training(nets.student, mutual.Mutual(TERMS), tx, **kwargs).init
  return seeds.stack([init(nets.variables(k)) for k in range(peers)])


def train(tx, peers, forward=nets.student, mode="jit", steps=3, **kwargs):
  step = mutual.together(training(forward, mutual.Mutual(TERMS), tx, **kwargs).step, peers)
  run = parallel.parallelize(step, mode)
  s = start(tx, peers, **kwargs)
  for i in range(steps):
    s, metrics = run(s, nets.batch(8, i))
  return s, metrics


@pytest.mark.parametrize("peers", [2, 3])
def test_it_is_a_loop_over_models_that_get_the_others_logits(peers):
  """Two or more ordinary states with batch norms, each with the others' training-mode outputs as its teacher."""
  tx = optim.optimizer("sgd", 0.1, weight_decay=0.01)
  got, metrics = train(tx, peers, ema=0.9)
  init, step = training(nets.student, weighted(TERMS), tx, ema=0.9)
  step, models = jax.jit(step), [init(nets.variables(k)) for k in range(peers)]
  softened = jax.jit(lambda v, x: jax.nn.softmax(nets.mlp(v, x, train=True, key=None)[0]))
  for i in range(3):
    batch = nets.batch(8, i)
    probabilities = [np.asarray(softened(m.variables, batch["image"])) for m in models]
    moved = []
    for k, model in enumerate(models):
      mean = sum(p for j, p in enumerate(probabilities) if j != k) / (peers - 1)
      moved.append(step(model, batch | {"teacher_logits": np.log(mean)}))
    models, logs = [m for m, _ in moved], [log for _, log in moved]
  for k, model in enumerate(models):
    peer = seeds.pick(got, k)
    for name in ("params", "model_state", "opt_state", "ema"):
      assert nets.largest_gap(getattr(peer, name), getattr(model, name)) < 1e-5, name
  for name in logs[0]:
    np.testing.assert_allclose(metrics[name], np.mean([log[name] for log in logs]), rtol=1e-4)
  assert int(got.step) == 3 and nets.largest_gap(seeds.pick(got, 0).params, seeds.pick(got, 1).params) > 0.01


def test_two_linear_peers_in_float64():
  """The paper's equations by numpy: each moves by its labels, and by its distance from the other's output."""
  rng = np.random.default_rng(0)
  w = [rng.normal(size=(4, 3)) for _ in range(2)]
  tx = optax.sgd(0.1)
  forward = plain(lambda v, x, **_: (x @ v["params"]["kernel"], {}))
  init, step = training(forward, mutual.Mutual(TERMS), tx)
  step = jax.jit(mutual.together(step, 2))
  s = seeds.stack([init({"params": {"kernel": jnp.asarray(one, jnp.float32)}}) for one in w])
  for i in range(3):
    batch = nets.batch(8, i)
    x, onehot = np.asarray(batch["image"], np.float64), np.eye(3)[np.asarray(batch["label"])]
    p = [scipy.special.softmax(x @ one, -1) for one in w]
    losses = [
      -0.5 * np.log((p[k] * onehot).sum(-1)).mean() + 2 * scipy.special.rel_entr(p[1 - k], p[k]).sum(-1).mean()
      for k in range(2)
    ]
    w = [w[k] - 0.1 * x.T @ (0.5 * (p[k] - onehot) + 2 * (p[k] - p[1 - k])) / 8 for k in range(2)]
    s, metrics = step(s, batch)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(s.params["kernel"], w, rtol=1e-5, atol=1e-6)


def test_the_mean_of_the_divergences_has_the_gradient_of_that_from_the_mean():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)), jnp.float32)

  def from_the_mean(logits):
    return jax.vmap(lambda z: kd.hinton(1.0)(z, mutual.others(z))[0].mean(), axis_name=mutual.PEERS)(logits).sum()

  def mean_of_each(logits):
    pairs = [kd.hinton(1.0)(logits[k], logits[j])[0].mean() for k in range(3) for j in range(3) if j != k]
    return sum(pairs) / 2

  near, far = (jax.jit(jax.value_and_grad(total))(logits) for total in (from_the_mean, mean_of_each))
  np.testing.assert_allclose(near[1], far[1], atol=1e-6)
  assert float(near[0]) < float(far[0])


def test_gaps_of_ten_thousand_are_finite_and_classes_may_not_count():
  far = np.zeros((3, 2, 4), np.float32)
  far[:, :, 0] = np.array([1e4, -1e4, 0.0])[:, None]
  where = np.array([True, True, True, False])
  for mask in (None, where):
    mixture = jax.jit(jax.vmap(lambda z, m=mask: mutual.others(z, m), axis_name=mutual.PEERS))(far)
    assert np.isfinite(mixture).all()
  alone = jax.jit(jax.vmap(mutual.others, axis_name=mutual.PEERS))(far[:2])
  np.testing.assert_array_equal(alone, jax.jit(jax.nn.log_softmax)(far[:2])[::-1])


def test_like_peers_are_a_model_alone():
  """Peers that start alike give the same logits, so that the distance between them has no gradient."""
  tx = optim.optimizer("sgd", 0.1)
  step = mutual.together(training(nets.student, mutual.Mutual(TERMS), tx).step, 2)
  init, alone = training(nets.student, weighted(TERMS[:1]), tx)
  step, alone, one = jax.jit(step), jax.jit(alone), init(nets.variables())
  s = seeds.stack([one, one])
  for i in range(3):
    s, _ = step(s, nets.batch(8, i))
    one, _ = alone(one, nets.batch(8, i))
  assert nets.largest_gap(seeds.pick(s, 1).params, one.params) < 1e-6


@functools.cache
def two_peers(mode):
  return train(optim.optimizer("sgd", 0.1), 2, mode=mode)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["pmap", "shard_map", "mesh"])
def test_devices_give_the_same_numbers(mode):
  one, many = two_peers("jit"), two_peers(mode)
  assert nets.largest_gap(one[0].params, many[0].params) < 1e-5
  np.testing.assert_allclose(many[1]["loss"], one[1]["loss"], rtol=1e-5)


def test_each_peer_has_its_own_masks_and_randomness():
  def with_dropout(variables, x, *, train, key):
    return nets.mlp(variables, jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0.0), train=train, key=key)

  tx = sparsity.magnitude(optim.optimizer("dot", 0.1), density=0.5, schedule=sparsity.one_shot(1))
  s, _ = train(tx, 2, plain(with_dropout), accumulate=2, steps=3)
  kernels = s.params["first"]["kernel"]
  assert [int(np.count_nonzero(kernel)) for kernel in kernels] == [16, 16]
  assert np.any((kernels[0] == 0) != (kernels[1] == 0))
  drawn = mutual.mapped(lambda state, batch, _, *, axis_name, seed: jax.random.key_data(jax.random.key(seed)), 2)
  first, second = drawn(s, None, seed=3)
  np.testing.assert_array_equal(first, jax.random.key_data(jax.random.key(3)))
  assert np.any(first != second)


def test_seeds_of_peers_train_together():
  tx = optim.optimizer("sgd", 0.1)
  step = mutual.together(training(nets.smooth, mutual.Mutual(TERMS), tx).step, 2)
  batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nets.batch(8, i) for i in range(3)))
  get_batch = lambda data, step, *, seed, part: jax.tree.map(lambda v: v[step], data)
  both = seeds.stack([start(tx, 2), start(tx, 2)])
  together, history = seeds.fit(step, both, get_batch, batches, seeds=(0, 1), steps=3)
  alone, series = engine.fit(step, start(tx, 2), get_batch, batches, steps=3)
  assert nets.largest_gap(seeds.pick(together, 1).params, alone.params) < 1e-6
  np.testing.assert_allclose(history["loss"][1], series["loss"], rtol=1e-5)


def test_the_norms_of_terms_are_the_peers_mean():
  tx = optim.optimizer("sgd", 0.1)
  objective = mutual.Mutual(TERMS[1:])
  step = mutual.together(training(nets.student, objective, tx).step, 2)
  norm = mutual.mean(engine.term_norm(nets.student, objective), 2)
  norms = engine.term_norms(norm, objective, lambda data, step, *, seed, part: data)
  s = start(tx, 2)
  found = norms(0, s, nets.batch())
  np.testing.assert_allclose(found["peer/grad_norm"], jax.jit(step)(s, nets.batch())[1]["grad_norm"], rtol=1e-6)


def test_mistakes_are_named():
  tx = optim.optimizer("sgd", 0.1)
  with pytest.raises(UserError, match="mutual learning of 1 peers; expected 2 or more"):
    mutual.together(training(nets.student, mutual.Mutual(TERMS), tx).step, 1)
  step = mutual.together(training(nets.student, mutual.Mutual(TERMS), tx, teacher=nets.teacher).step, 2)
  with pytest.raises(UserError, match="peers teach each other: expected no teacher"):
    step(start(tx, 2), nets.batch(), nets.variables())
