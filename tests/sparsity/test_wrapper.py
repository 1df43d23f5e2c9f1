"""Every sparse method with any optimizer inside, any wrapper outside, and on any number of devices."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsity
from leanax.core.errors import UserError
from tests.sparsity import nets

late = functools.partial(sparsity.magnitude, density=0.3, schedule=sparsity.one_shot(3))
cheap = functools.partial(sparsity.magnitude, threshold=0.6, schedule=sparsity.one_shot(3))  # to compile

BY_LABEL = {"Conv_0": "a", "Dense_0": {"kernel": "b", "bias": "a"}}
INNER = {
  "momentum": optax.sgd(0.1, momentum=0.9),
  "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
  "multi_steps": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
  "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(learning_rate=0.1),
  "multi_transform": optax.multi_transform({"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)}, BY_LABEL),
  "masked_group": optax.masked(optax.adam(0.1), {"Conv_0": False, "Dense_0": True}),
  "clip_decay": optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), optax.adam(0.1)),
  "noise": optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.trace(0.9), optax.scale(-0.05)),
  "nadam": optax.nadam(0.1),
  "nadamw": optax.nadamw(0.1),
  "noisy_sgd": optax.noisy_sgd(0.1, key=0),
} | {
  alias.__name__: alias(0.1)
  for alias in (
    *(optax.adabelief, optax.adadelta, optax.adafactor, optax.adagrad, optax.adam, optax.adamax, optax.adamaxw),
    *(optax.adamw, optax.adan, optax.amsgrad, optax.fromage, optax.lamb, optax.lars, optax.lion),
    *(optax.novograd, optax.optimistic_adam_v2, optax.optimistic_gradient_descent, optax.radam),
    *(optax.rmsprop, optax.rprop, optax.sgd, optax.sign_sgd, optax.signum, optax.sm3, optax.yogi),
  )
}


def slots_of(state, tree):
  """(parameter's path, slot) for each slot, by the reference of another walk: text of paths and equal shapes."""
  params = {jax.tree_util.keystr(path): p for path, p in jax.tree_util.tree_leaves_with_path(tree)}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    for name, p in params.items():
      if jax.tree_util.keystr(path).endswith(name) and jnp.shape(leaf) == p.shape:
        yield name, leaf


OFTEN = {
  "momentum",
  "adamw",
  "adafactor",
  "lion",
  "multi_steps",
  "inject_hyperparams",
  "multi_transform",
  "masked_group",
}


class Spied(NamedTuple):
  state: Any
  seen: Any


def spied(inner):
  """The optimizer, and in its state what it last saw as its state."""
  inner = optax.with_extra_args_support(inner)

  def update(updates, state, params=None, **extra):
    updates, new = inner.update(updates, state.state, params, **extra)
    return updates, Spied(new, state.state)

  return optax.GradientTransformationExtraArgs(lambda p: Spied(inner.init(p), inner.init(p)), update)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in INNER])
def test_any_optimizer(name):
  """From step 3 on pruned entries are zero after each update, and so are their slots as the optimizer sees them."""
  start, seen = nets.params(), 0
  for step, tree, state in nets.train(cheap(spied(INNER[name])), start, 6):
    masks = sparsity.masks(state)
    by_name = {jax.tree_util.keystr(path): m for path, m in jax.tree_util.tree_leaves_with_path(masks)}
    for layer in start:
      mask = np.asarray(masks[layer]["kernel"])
      assert np.all(mask) if step < 3 else 0.2 < np.mean(mask) < 0.8
      nets.assert_bit_zero(mask, tree[layer]["kernel"])
    for path, slot in slots_of(state.inner.seen, start):
      if path in by_name:
        nets.assert_bit_zero(by_name[path], slot)
        seen += 1
  slotless = {"adafactor", "fromage", "noisy_sgd", "optimistic_gradient_descent", "sgd", "sign_sgd", "sm3"}
  assert seen or name in slotless, "no slot was found"


def assert_same(got, want):
  def same(a, b):
    a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
    np.testing.assert_array_equal(a, b)

  jax.tree.map(same, got, want)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in INNER])
def test_with_nothing_pruned_it_is_the_optimizer_bit_for_bit(name):
  """Masks that are all True; operation by operation, for a compiler contracts a * b + c where it likes."""
  tx, inner = sparsity.hold(INNER[name]), optax.with_extra_args_support(INNER[name])
  tree = want = nets.params()
  state, wanted = tx.init(tree), inner.init(want)
  with jax.numpy_dtype_promotion("standard"):
    for step in range(2):
      updates, state = tx.update(nets.gradients(tree, step), state, tree)
      expected, wanted = inner.update(nets.gradients(want, step), wanted, want)
      assert_same((updates, state.inner), (expected, wanted))
      tree, want = optax.apply_updates(tree, updates), optax.apply_updates(want, expected)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_density_one_is_the_optimizer_bit_for_bit(name):
  *_, (_, want, slots) = nets.train(nets.plain(INNER[name]), nets.params(), 3)
  *_, (_, got, state) = nets.train(sparsity.magnitude(INNER[name], density=1.0), nets.params(), 3)
  assert_same((got, state.inner), (want, slots))


def test_strict_promotion_is_kept():
  tree = nets.params()
  tx = late(optax.sgd(0.1, momentum=0.9))
  updates, _ = tx.update(tree, tx.init(tree), tree, step=0)
  assert jax.tree.structure(updates) == jax.tree.structure(tree)


def test_multi_steps_outside_counts_optimizer_updates():
  micro, tree = 3, nets.params()
  schedule = sparsity.cubic(1, 5, every=2)
  tx = optax.MultiSteps(sparsity.magnitude(optax.adamw(0.1), density=0.2, schedule=schedule), micro)
  state = tx.init(tree)
  update = jax.jit(lambda g, s, p, step: tx.update(g, s, p, step=step))
  kept = []
  with jax.numpy_dtype_promotion("standard"):
    for i in range(7 * micro):
      updates, state = update(nets.gradients(tree, i), state, tree, jnp.int32(i // micro))
      tree = optax.apply_updates(tree, updates)
      mask = sparsity.masks(state)["Dense_0"]["kernel"]
      nets.assert_bit_zero(mask, tree["Dense_0"]["kernel"])
      kept.append(int(np.sum(mask)))
  want = [153, 153, 153, round(153 * 0.3), round(153 * 0.3), round(153 * 0.2), round(153 * 0.2)]
  assert kept[micro - 1 :: micro] == want  # after each optimizer update
  assert kept[: micro - 1] == [153] * (micro - 1)


def test_apply_if_finite_outside_makes_up_for_a_refused_mask():
  tree = nets.params()
  tx = optax.apply_if_finite(late(optax.adam(0.1)), 5)
  state, update = tx.init(tree), jax.jit(tx.update)
  with jax.numpy_dtype_promotion("standard"):
    for step in range(6):
      g = jax.tree.map(lambda x, bad=step == 3: x * (jnp.nan if bad else 1.0), nets.gradients(tree, step))
      updates, state = update(g, state, tree, step=jnp.int32(step))
      tree = optax.apply_updates(tree, updates)
      mask = sparsity.masks(state)["Dense_0"]["kernel"]
      assert np.sum(mask) == (46 if step > 3 else 153)  # due in step 3, made in step 4
      nets.assert_bit_zero(mask, tree["Dense_0"]["kernel"])


def test_an_average_is_masked_again():
  average = nets.params()
  for _, tree, state in nets.train(late(optax.sgd(0.1)), nets.params(), 5):
    average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, average, tree)
    average = sparsity.apply_masks(sparsity.masks(state), average)
  mask = sparsity.masks(state)["Dense_0"]["kernel"]
  nets.assert_bit_zero(mask, average["Dense_0"]["kernel"])
  assert np.all(np.asarray(average["Dense_0"]["kernel"])[np.asarray(mask)] != 0)


def test_check_finds_transformations_that_follow():
  tree = nets.params()
  tx = sparsity.magnitude(optax.sgd(0.1, momentum=0.9), threshold=0.6)
  sparsity.check(tx, tree)
  with jax.numpy_dtype_promotion("standard"):
    sparsity.check(optax.MultiSteps(tx, 4), tree)
    sparsity.check(optax.apply_if_finite(tx, 2), tree)
    for after in (optax.scale(0.5), optax.add_decayed_weights(0.1), optax.apply_every(3)):
      with pytest.raises(UserError, match="something follows the sparse method"):
        sparsity.check(optax.chain(tx, after), tree)
    with pytest.raises(UserError, match="more than the micro-steps"):
      sparsity.check(optax.MultiSteps(tx, 100), tree)
    sparsity.check(optax.MultiSteps(tx, 4).gradient_transformation(), tree)  # passes no step= on
    with pytest.raises(UserError, match="than the schedule's first update where step= cannot be passed"):
      sparsity.check(optax.MultiSteps(late(optax.sgd(0.1)), 12).gradient_transformation(), tree)
  with pytest.raises(UserError, match="holds no sparse method"):
    sparsity.check(optax.sgd(0.1), tree)


def test_state_survives_flattening_and_copying_through_numpy():
  tx = late(optax.adamw(0.1))
  *_, (_, tree, state) = nets.train(tx, nets.params(), 4)
  leaves, treedef = jax.tree.flatten(state)
  again = treedef.unflatten([jnp.asarray(np.asarray(leaf)) for leaf in leaves])
  assert jax.tree.structure(tx.init(tree)) == treedef
  runs = [list(nets.train(tx, tree, 2, start=4, state=s))[-1] for s in (state, again)]
  jax.tree.map(np.testing.assert_array_equal, runs[0][1:], runs[1][1:])


by_momentum = late(optax.sgd(0.1, momentum=0.9))


def update(tree, state, step, shift, axis_name=None):
  g = jax.tree.map(lambda g: g * jnp.mean(shift), nets.gradients(tree, step))
  g = g if axis_name is None else jax.lax.pmean(g, axis_name)
  updates, state = by_momentum.update(g, state, tree, step=step)
  return optax.apply_updates(tree, updates), state


@functools.cache
def on_one_device():
  """Parameters and state after five updates by the mean of the devices' shifts, operation by operation."""
  tree = nets.params()
  state = by_momentum.init(tree)
  for step in range(5):
    tree, state = update(tree, state, jnp.int32(step), jnp.arange(1.0, jax.device_count() + 1))
  return tree, state


@pytest.mark.parametrize("mode", ["pmap", "shard_map", "jit"])
def test_same_masks_on_all_devices(mode):
  tx, tree = by_momentum, nets.params()
  devices = jax.device_count()

  spec = jax.sharding.PartitionSpec
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
  over = functools.partial(update, axis_name="d")
  run = {
    "jit": jax.jit(update),
    "pmap": jax.pmap(over, axis_name="d", in_axes=(None, None, None, 0), out_axes=(0, 0)),
    "shard_map": jax.jit(
      jax.shard_map(over, mesh=mesh, in_specs=(spec(), spec(), spec(), spec("d")), out_specs=spec(), check_vma=True)
    ),
  }[mode]
  state = tx.init(tree)
  for step in range(5):
    shift = jnp.arange(1.0, devices + 1)
    tree, state = run(tree, state, jnp.int32(step), shift)
    if mode == "pmap":
      every = sparsity.masks(state)["Dense_0"]["kernel"]
      assert all(np.array_equal(every[0], mask) for mask in every)
      tree, state = jax.tree.map(lambda x: x[0], (tree, state))
  want, wanted = on_one_device()
  jax.tree.map(np.testing.assert_array_equal, sparsity.masks(state), sparsity.masks(wanted))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), tree, want)


def conds(jaxpr):
  for equation in jaxpr.eqns:
    if equation.primitive.name == "cond":
      yield equation
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
      if hasattr(inner, "eqns"):
        yield from conds(inner)


def test_seeds_by_vmap():
  tx = late(optax.sgd(0.1, momentum=0.9))
  trees = [nets.params(seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *trees)
  state = jax.vmap(tx.init)(stacked)

  def update(tree, state, step):
    updates, state = tx.update(nets.gradients(tree, step), state, tree, step=step)
    return optax.apply_updates(tree, updates), state

  run = jax.vmap(update, (0, 0, None))
  found = conds(jax.make_jaxpr(run)(stacked, state, jnp.int32(0)).jaxpr)
  rare = [cond for cond in found if any(out.aval.dtype == jnp.uint8 for out in cond.outvars)]
  assert len(rare) == 1, "the mask update runs in every step"
  for step in range(5):
    stacked, state = jax.jit(run)(stacked, state, jnp.int32(step))
  for i, tree in enumerate(trees):
    *_, (_, want, wanted) = nets.train(tx, tree, 5)
    np.testing.assert_array_equal(
      sparsity.masks(state)["Dense_0"]["kernel"][i], sparsity.masks(wanted)["Dense_0"]["kernel"]
    )
    np.testing.assert_allclose(stacked["Dense_0"]["kernel"][i], want["Dense_0"]["kernel"], rtol=1e-5, atol=1e-6)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
  "method",
  [
    functools.partial(sparsity.magnitude, density=0.3),
    functools.partial(sparsity.prune, score=sparsity.criteria.taylor(0.5), density=0.3),
    functools.partial(sparsity.set, density=0.3, schedule=sparsity.schedules.periodic(every=1, end=3)),
    lambda inner: None,
  ],
  ids=["magnitude", "taylor", "set", "at once"],
)
def test_none_in_the_parameters_is_no_leaf(method):
  """As the bias of an equinox layer without one: masks of the leaves behind it stay theirs."""
  kernels = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
  plain = {name: {"kernel": jnp.asarray(kernel)} for name, kernel in zip("abc", kernels, strict=True)}
  holed = {name: {"bias": None, **layer, "scale": None} for name, layer in plain.items()}

  def after(tree):
    tx = method(optax.sgd(0.1, momentum=0.9))
    if tx is None:
      return sparsity.mask(tree, density=0.3)
    state, update = tx.init(tree), jax.jit(tx.update)
    for step in range(3):
      gradients = jax.tree.map(lambda w, step=step: jnp.cos(w + step), tree)
      updates, state = update(gradients, state, tree)
      tree = optax.apply_updates(tree, updates)
    return sparsity.apply_masks(sparsity.masks(state), tree)

  got, want = after(holed), after(plain)
  assert jax.tree.structure(got) == jax.tree.structure(holed)
  jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(got), jax.tree.leaves(want))
