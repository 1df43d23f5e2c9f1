"""Every sparse method, found by walking the package, through one battery. Adding a file to sparsity/ is enough.

A sparse method is a method whose first parameter is `inner`, an optax optimizer. It is made with `density=0.5` if it
has such a keyword, and otherwise with its defaults; the parameters have zeros of their own for methods that keep those.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import sparsity
from leanax.core.methods import methods
from tests.conformance.exceptions import EXCEPTIONS, cases

METHODS = {n: f for n, f in methods(sparsity).items() if next(iter(inspect.signature(f).parameters)) == "inner"}
CHECKS = []
DENSITY = 0.5


def relaxed(inner):
  """Lets optax's own code promote int32 counts; ours around it stays strict."""
  inner = optax.with_extra_args_support(inner)

  def update(*args, **kwargs):
    with jax.numpy_dtype_promotion("standard"):
      return inner.update(*args, **kwargs)

  return optax.GradientTransformationExtraArgs(inner.init, update)


def adam():
  return relaxed(optax.adam(0.01))


# Optimizers by what their slots look like; nothing in sparsity may know their state classes.
OPTIMIZERS = {
  "sgd": lambda: optax.sgd(0.1),
  "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
  "adam": lambda: optax.adam(0.01),
  "adamw": lambda: optax.adamw(0.01, weight_decay=0.3),
  "adamw_masked_decay": lambda: optax.adamw(
    0.01, weight_decay=0.3, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
  ),
  "lion": lambda: optax.lion(0.01),
  "rmsprop": lambda: optax.rmsprop(0.01, momentum=0.9),
  "adagrad": lambda: optax.adagrad(0.1),
  "adafactor": lambda: optax.adafactor(0.01, min_dim_size_to_factor=4),
  "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(optax.cosine_decay_schedule(0.01, 100))),
  "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
  "partition": lambda: optax.partition(
    {"a": optax.adam(0.01), "b": optax.sgd(0.1)},
    lambda p: jax.tree_util.tree_map_with_path(lambda path, _: "a" if "first" in str(path) else "b", p),
  ),
}

QUICK = ("momentum", "adamw_masked_decay", "adafactor", "clipped", "partition")
INNER = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS]


def every_method(test):
  check = test.__name__.removeprefix("test_")
  CHECKS.append(check)
  return pytest.mark.parametrize("name", cases("sparsity", METHODS, check))(test)


def make(name, inner, density=DENSITY):
  wanted = "density" in inspect.signature(METHODS[name]).parameters
  return METHODS[name](inner, **({"density": density} if wanted else {}))


def params(zeros=True):
  """A kernel with ties and zeros, another with a channel of zeros, and a bias, which is never pruned."""
  rng = np.random.default_rng(0)
  first = np.round(rng.normal(size=(6, 8)) * 2) / 2
  first = np.where(first == 0, 0.0 if zeros else 0.5, first)
  second = rng.normal(size=(3, 3, 2, 4))
  if zeros:
    second[:, :, 0] = 0.0
  tree = {"first": {"kernel": first, "bias": rng.normal(size=8)}, "second": {"kernel": second}}
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def gradients(seed, tree):
  rng = np.random.default_rng(100 + seed)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


def train(tx, tree, steps=4, start=0, state=None, compiled=True):
  state = tx.init(tree) if state is None else state
  update = jax.jit(tx.update) if compiled else tx.update
  for step in range(start, start + steps):
    updates, state = update(gradients(step, tree), state, tree, step=jnp.int32(step))
    tree = optax.apply_updates(tree, updates)
  return tree, state


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def pruned(tree, state):
  """How many entries are pruned; asserts that each is exactly zero, and not minus zero."""
  number = 0
  for mask, leaf in zip(*(jax.tree.leaves(t, is_leaf=lambda x: x is None) for t in (sparsity.masks(state), tree))):
    if mask is not None:
      out = np.asarray(leaf)[~np.asarray(mask)]
      assert np.all(out == 0) and not np.any(np.signbit(out))
      number += out.size
  return number


def test_the_walk_finds_them():
  assert {"magnitude", "hold"} <= set(METHODS)


@every_method
@pytest.mark.parametrize("inner", INNER)
def test_pruned_entries_are_exactly_zero(name, inner):
  tx, tree = make(name, relaxed(OPTIMIZERS[inner]())), params()
  state = tx.init(tree)
  update = jax.jit(tx.update)
  for step in range(4):
    updates, state = update(gradients(step, tree), state, tree, step=jnp.int32(step))
    tree = optax.apply_updates(tree, updates)
    assert pruned(tree, state) > 0
  assert jnp.all(tree["first"]["bias"] != 0)


@every_method
@pytest.mark.parametrize("inner", INNER)
def test_nothing_pruned_is_the_inner_optimizer_bitwise(name, inner):
  """Operation by operation: compiled as a whole, XLA may contract a product and a sum in one and not in the other."""
  plain, sparse = relaxed(OPTIMIZERS[inner]()), make(name, relaxed(OPTIMIZERS[inner]()), density=1.0)
  expected, _ = train(plain, params(zeros=False), 2, compiled=False)
  got, state = train(sparse, params(zeros=False), 2, compiled=False)
  assert pruned(got, state) == 0
  equal(got, expected)


@every_method
def test_kept_entries_know_nothing_of_the_pruned(name):
  """SGD moves each entry alone: where the mask keeps, the result is that of plain SGD, bit for bit."""
  (plain, _), (sparse, state) = (
    train(optax.with_extra_args_support(optax.sgd(0.1)), params()),
    train(make(name, optax.sgd(0.1)), params()),
  )
  mask = sparsity.masks(state)["second"]["kernel"]
  kept = jnp.where(mask, plain["second"]["kernel"], 0)
  np.testing.assert_array_equal(sparse["second"]["kernel"], kept)


@every_method
def test_under_multisteps(name):
  """With two micro-batches an update: a mask that is made in a call whose result is thrown away is made again."""
  tx, tree = optax.MultiSteps(make(name, adam()), 2), params()
  state = tx.init(tree)
  for micro in range(6):
    with jax.numpy_dtype_promotion("standard"):  # of MultiSteps itself
      updates, state = tx.update(gradients(micro, tree), state, tree, step=jnp.int32(micro // 2))
    tree = optax.apply_updates(tree, updates)
    if micro:
      assert pruned(tree, state) > 0


@every_method
def test_under_apply_if_finite(name):
  """A step that is not finite changes nothing; the next one is as if it had not been."""
  tx = optax.apply_if_finite(make(name, adam()), 3)
  tree, state = train(tx, params(), steps=2)
  bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tree)
  updates, state = tx.update(bad, state, tree, step=jnp.int32(2))
  equal(optax.apply_updates(tree, updates), tree)
  tree, state = train(tx, tree, steps=2, start=2, state=state)
  assert pruned(tree, state) > 0


@every_method
def test_averages_are_masked(name):
  tree, state = train(make(name, adam()), params())
  average = sparsity.apply_masks(sparsity.masks(state), jax.tree.map(lambda x: x + 1.0, tree))
  assert pruned(average, state) > 0
  np.testing.assert_array_equal(average["first"]["bias"], tree["first"]["bias"] + 1.0)


@every_method
def test_the_check_accepts_it_and_refuses_what_follows(name):
  sparsity.check(make(name, adam()), params())
  # A sum, not a factor: `hold` prunes what is zero already, and any multiple of its update is right.
  added = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u + 0.5, updates))
  with pytest.raises(Exception, match="something follows the sparse method"):
    sparsity.check(optax.chain(make(name, adam()), added), params())


@every_method
def test_one_compilation(name):
  tx, tree = make(name, adam()), params()
  traces = []

  @jax.jit
  def update(grads, state, tree, step):
    traces.append(1)
    return tx.update(grads, state, tree, step=step)

  state = tx.init(tree)
  for step in range(4):
    updates, state = update(gradients(step, tree), state, tree, jnp.int32(step))
    tree = optax.apply_updates(tree, updates)
  assert len(traces) == 1


@every_method
def test_same_masks_on_all_devices(name):
  """With gradients averaged over four devices, replication is proved by the trace, and the result is one device's."""
  tx, tree = make(name, optax.sgd(0.1)), params()
  mesh = Mesh(np.asarray(jax.devices()[:4]), ("devices",))
  state, expected_state = tx.init(tree), tx.init(tree)

  def local(grads, state, tree):
    grads = jax.tree.map(lambda g: jax.lax.pmean(g[0], "devices"), grads)
    return tx.update(grads, state, tree, step=jnp.int32(0))

  shares = jax.tree.map(lambda g: jnp.stack([0.5 * g, 1.5 * g, g, g]), gradients(0, tree))
  split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P("devices"), P(), P()), out_specs=(P(), P())))
  updates, state = split(shares, state, tree)
  expected, expected_state = tx.update(gradients(0, tree), expected_state, tree, step=jnp.int32(0))
  jax.tree.map(np.testing.assert_array_equal, sparsity.masks(state), sparsity.masks(expected_state))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


@every_method
def test_through_a_checkpoint(name):
  """The state is arrays only: written out leaf by leaf and read back, training goes on bit for bit."""
  tx = make(name, adam())
  tree, state = train(tx, params(), steps=2)
  leaves, treedef = jax.tree.flatten((tree, state))
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  copies = [jnp.asarray(np.frombuffer(np.asarray(x).tobytes(), x.dtype).reshape(x.shape)) for x in leaves]
  tree2, state2 = treedef.unflatten(copies)
  equal(train(tx, tree2, start=2, state=state2), train(tx, tree, start=2, state=state))


@every_method
def test_exact_counts_under_ties(name):
  """All magnitudes equal: the number kept is still the one asked for (methods with a density only)."""
  if "density" not in inspect.signature(METHODS[name]).parameters:
    pytest.skip("keeps what it finds: it has no density to reach")
  tree = jax.tree.map(lambda x: jnp.full(x.shape, 0.25, x.dtype), params())
  for density in (0.1, 0.33, 0.5, 0.9):
    state = train(make(name, optax.sgd(0.0), density), tree, steps=1)[1]
    for mask in jax.tree.leaves(sparsity.masks(state)):
      assert int(mask.sum()) == max(1, round(mask.size * density))


def test_exceptions_name_what_exists():
  assert [key for key in EXCEPTIONS if key[0] == "sparsity" and (key[1] not in METHODS or key[2] not in CHECKS)] == []
