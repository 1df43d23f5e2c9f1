"""Parallel modes: the same numbers on four devices, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from leanax.core import axis
from leanax.core.errors import UserError
from leanax.engine.train import optim, parallel
from leanax.engine.train.forward import plain
from leanax.engine.train.statistics import find_local_statistics
from leanax.engine.train.step import training
from tests.engine import nets

MODES = parallel.MODES


def distilling(**kwargs):
  tx = optim.optimizer("sgd", 0.1)
  init, step = training(nets.student, nets.distillation(), tx, teacher=nets.teacher, ema=0.9, **kwargs)
  return step, init(nets.variables())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("mode", MODES)
def test_modes_give_the_same_numbers(mode):
  step, start = distilling()
  whole, run = jax.jit(step), parallel.parallelize(step, mode)
  s, t = start, start
  for i in range(3):
    before = s
    s, a = whole(s, nets.batch(16, i), nets.variables(1))
    t, b = run(t, nets.batch(16, i), nets.variables(1))
    assert nets.largest_gap(s, t) < 1e-6 * float(a["grad_norm"]) * 3, f"at step {i}"
    assert nets.largest_gap(a, b) < 1e-6
    assert nets.largest_gap(before.params, s.params) > 1e-3
  assert jax.tree.structure(s) == jax.tree.structure(t)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), s) == jax.tree.map(lambda x: (x.shape, x.dtype), t)
  for leaf in jax.tree.leaves((t, b)):  # all shards hold one value, whatever the type says
    assert all((np.asarray(shard.data) == np.asarray(leaf)).all() for shard in leaf.addressable_shards)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["pmap", "mesh", "shard_map"])
def test_a_batch_that_does_not_divide_is_refused(mode):
  step, s = distilling()
  with pytest.raises(UserError, match="a batch of 10 examples does not divide over 4 devices"):
    parallel.parallelize(step, mode)(s, nets.batch(10), nets.variables(1))
  with pytest.raises(UserError, match=r"\[7, 8\] examples"):
    parallel.parallelize(step, mode)(s, nets.batch(8) | {"id": jnp.arange(7)}, nets.variables(1))
  with pytest.raises(UserError, match="a part of the batch is a scalar"):
    parallel.parallelize(step, mode)(s, nets.batch(8) | {"id": jnp.int32(7)}, nets.variables(1))
  two = parallel.parallelize(step, mode, jax.devices()[:2])
  one = jax.jit(step)(s, nets.batch(10), nets.variables(1))
  assert nets.largest_gap(two(s, nets.batch(10), nets.variables(1)), one) < 1e-5


def test_unknown_mode():
  with pytest.raises(UserError, match="unknown parallel mode 'pmp'; did you mean 'pmap'"):
    parallel.parallelize(lambda s, b, t: (s, {}), "pmp")


def test_arrays_of_other_devices_are_accepted():
  step, s = distilling()
  away = jax.device_put((s, nets.batch(8), nets.variables(1)), jax.devices()[3])
  for mode in MODES[1:]:
    there = jax.tree.map(np.asarray, parallel.parallelize(step, mode)(*away))
    assert nets.largest_gap(there, jax.tree.map(np.asarray, jax.jit(step)(*away))) < 1e-5


@pytest.mark.parametrize("kwargs", [{}, {"accumulate": 2}], ids=["plain", "accumulated"])
def test_every_step_is_proven_to_replicate(kwargs):
  tx = optim.optimizer("adamw", 0.01, weight_decay=0.1, clip_norm=1.0, rates={"scale": 0.1})
  init, step = training(nets.student, nets.distillation(), tx, teacher=nets.teacher, ema=0.9, **kwargs)
  s = init(nets.variables())
  parallel.prove_replication(step, jax.devices(), s, nets.batch(8), nets.variables(1))


def test_a_forgotten_mean_is_found_in_the_trace():
  def careless(s, batch, teacher, *, axis_name):
    return s, {"loss": batch["image"].mean()}

  with pytest.raises(ValueError, match="out_specs"):
    parallel.prove_replication(careless, jax.devices(), {"w": jnp.ones(2)}, nets.batch(8))


def local_norm(variables, x, *, train, key):
  return nets.mlp(variables, x, train=train, key=key)


@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
def test_per_device_statistics_are_refused_by_name(mode):
  tx = optim.optimizer("sgd", 0.1)
  init, step = training(plain(local_norm), nets.supervised(), tx)
  s = init(nets.variables())
  with pytest.raises(UserError, match="each device's part of the batch at norm;"):
    parallel.parallelize(step, mode)(s, nets.batch(8))
  # The compiler's modes see the whole batch.
  assert nets.largest_gap(parallel.parallelize(step, "mesh")(s, nets.batch(8)), jax.jit(step)(s, nets.batch(8))) < 1e-5
  allowed = training(plain(local_norm), nets.supervised(), tx, per_device_statistics=True).step
  new, _ = parallel.parallelize(allowed, mode)(s, nets.batch(8))
  first = s.params["first"]
  h = np.asarray(nets.batch(8)["image"] @ first["kernel"] + first["bias"]).reshape(4, 2, -1)
  np.testing.assert_allclose(new.model_state["batch_stats"]["norm"]["mean"], 0.1 * h.mean((0, 1)), atol=1e-6)
  variance = 0.9 + 0.1 * h.var(1).mean(0)
  np.testing.assert_allclose(new.model_state["batch_stats"]["norm"]["var"], variance, atol=1e-6)


class Convolutional(nn.Module):
  """A model of ordinary parts, under scan and remat."""

  axis_name: str | None = None

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3))(x)
    x = nn.remat(nn.BatchNorm)(use_running_average=False, axis_name=self.axis_name, name="rematted")(x)
    x = nn.max_pool(jax.nn.gelu(x), (2, 2), (2, 2)).reshape(x.shape[0], -1)
    x = nn.LayerNorm()(nn.Dense(4)(x))
    body = lambda layer, carry, _: (layer(carry), None)
    layers = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
    x, _ = layers(nn.Dense(4, name="layer"), x, None)
    return nn.softmax(nn.Dense(3)(x))


def linen(model):
  variables = model.copy(axis_name=None).init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
  return variables, lambda v, x: model.apply(v, x, mutable=["batch_stats"])


def test_local_statistics_of_a_linen_model():
  variables, fn = linen(Convolutional())
  found = find_local_statistics(fn, variables, jnp.zeros((2, 8, 8, 1)))
  assert len(found) == 1 and "rematted" in found[0]
  variables, fn = linen(Convolutional(axis_name="batch"))
  found = []  # from inside the axis, as a step looks
  inside = lambda x: (found.extend(find_local_statistics(fn, variables, x)), x)[1]
  jax.eval_shape(jax.vmap(inside, axis_name="batch"), jnp.zeros((4, 2, 8, 8, 1)))
  assert found == []


MIXES = {
  "mean": lambda x: x - x.mean(0),
  "sorted": lambda x: jnp.sort(x, axis=0),
  "cumulative": lambda x: jnp.cumsum(x, axis=0),
  "similarity": lambda x: jax.nn.softmax(x @ x.T) @ x,
  "flattened": lambda x: x / jnp.linalg.norm(x),
  "scanned": lambda x: jax.lax.scan(lambda c, _: (c + x.mean(), None), x, None, 2)[0],
  "looped": lambda x: jax.lax.fori_loop(0, x.shape[1], lambda i, c: c - c.mean(0), x),
  "branched": lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x - x.mean(0), x),
}
KEEPS = {
  "features": lambda x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True),
  "global": lambda x: x - axis.pmean(x.mean(0), "batch"),
  "globally scanned": lambda x: jax.lax.scan(lambda c, _: (c + axis.pmean(x.mean(), "batch"), None), x, None, 2)[0],
  "dense": lambda x: x @ jnp.ones((4, 4)),
}


@pytest.mark.parametrize(("name", "local"), [(n, True) for n in MIXES] + [(n, False) for n in KEEPS])
def test_local_statistics_are_found(name, local):
  fn, found = {**MIXES, **KEEPS}[name], []
  inside = lambda x: (found.extend(find_local_statistics(fn, x)), x)[1]
  jax.eval_shape(jax.vmap(inside, axis_name="batch"), jnp.zeros((4, 2, 4)))
  assert bool(found) == local
