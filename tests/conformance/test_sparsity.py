"""Every object of sparsity, found by the kind that it declares, through the battery of that kind.

A public function declares its kind by what it returns: an optax transformation, a `Score`, a `Pattern`, `Densities`, a
`Schedule`. Adding a file to a folder of sparsity/ is enough; a file of methods that no battery collects fails a test.
Sparse optimizers are made with `density=0.5` where they have such a keyword, and criteria and patterns are put into
`prune`; the parameters have zeros of their own for methods that keep those.
"""

import functools
import inspect
import itertools
import math
import pkgutil
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import sparsity
from leanax.graph.kinds import Reparam
from tests.conformance.exceptions import EXCEPTIONS, cases
from tests.numbers import array


def of_kind(kind):
  """{name: function} of what sparsity and its folders export that returns this kind."""
  folders = [sparsity, *(m for m in vars(sparsity).values() if isinstance(m, types.ModuleType))]
  exported = [getattr(folder, name) for folder in folders for name in getattr(folder, "__all__", ())]
  functions = [f for f in exported if inspect.isfunction(f) and typing.get_type_hints(f).get("return") is kind]
  return {f.__name__: f for f in functions if not f.__name__.startswith("check_")}


OPTIMIZERS = of_kind(optax.GradientTransformationExtraArgs)
SCORES, PATTERNS = of_kind(sparsity.Score), of_kind(sparsity.Pattern)
ALLOCATIONS, SCHEDULES = of_kind(sparsity.Densities), of_kind(sparsity.Schedule)
NORMALISED = of_kind(sparsity.allocations.Normalised)
AT_ONCE = {"mask": sparsity.mask}  # params -> params
REPARAMS = of_kind(Reparam)
KINDS = (OPTIMIZERS, AT_ONCE, SCORES, PATTERNS, ALLOCATIONS, NORMALISED, SCHEDULES, REPARAMS)

# Arguments without a default, of methods that move a mask; each of their updates does.
FILL = {
  "schedule": sparsity.schedules.periodic(every=1, end=3),
  "drop": sparsity.criteria.magnitude(),
  "grow": sparsity.criteria.taylor(0.5),
  "fraction": 0.4,
}


def filled(method):
  """The method with what it needs beside the inner optimizer and a density."""
  needed = [p.name for p in inspect.signature(method).parameters.values() if p.default is p.empty]
  return functools.partial(method, **{name: FILL[name] for name in needed if name not in ("inner", "density")})


# `prune` itself is each criterion in it, and each pattern, and `dynamic` what is built on it; a criterion that
# remembers is another program.
BARE = {name: filled(f) for name, f in OPTIMIZERS.items() if name not in ("prune", "dynamic", "wrap")}
METHODS = (
  BARE
  | {f"prune by {n}": functools.partial(OPTIMIZERS["prune"], score=f()) for n, f in SCORES.items() if n != "magnitude"}
  | {"dynamic": filled(OPTIMIZERS["dynamic"])}
  | {"prune by taylor, remembered": functools.partial(OPTIMIZERS["prune"], score=sparsity.criteria.taylor(0.5))}
)
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


# Inner optimizers by what their slots look like; nothing in sparsity may know their state classes.
INNERS = {
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

QUICK = ("momentum", "adamw_masked_decay", "partition")
INNER = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in INNERS]


def over(methods):
  def every(test):
    check = test.__name__.removeprefix("test_")
    CHECKS.append(check)
    return pytest.mark.parametrize("name", cases("sparsity", methods, check))(test)

  return every


every_method, every_bare_method = over(METHODS), over(BARE)


def make(name, inner, density=DENSITY, allocation="uniform"):
  given = {"density": density, "allocation": allocation}
  wanted = inspect.signature(METHODS[name]).parameters
  return METHODS[name](inner, **{key: value for key, value in given.items() if key in wanted})


@functools.cache
def sgd(name):
  """The method around SGD: one object for all tests, so that they share its compiled update."""
  return make(name, optax.sgd(0.1))


@functools.cache
def by_adam(name):
  """The method around Adam, shared in the same way."""
  return make(name, adam())


def params(zeros=True):
  """A kernel with ties and zeros, another with a channel of zeros, and a bias, which is never pruned."""
  rng = np.random.default_rng(0)
  first = np.round(rng.normal(size=(6, 8)) * 2) / 2
  first = np.where(first == 0, 0.0 if zeros else 0.5, first)
  second = rng.normal(size=(3, 3, 2, 4))
  if zeros:
    second[:, :, 0] = 0.0
  tree = {"first": {"kernel": first, "bias": rng.normal(size=8)}, "second": {"kernel": second}}
  return jax.tree.map(lambda x: array(x, np.float32), tree)


def gradients(seed, tree):
  rng = np.random.default_rng(100 + seed)
  return jax.tree.map(lambda x: array(rng.normal(size=x.shape), x.dtype), tree)


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
  """The number of pruned entries; asserts that each is exactly +0."""
  number = 0
  for mask, leaf in zip(*(jax.tree.leaves(t, is_leaf=lambda x: x is None) for t in (sparsity.masks(state), tree))):
    if mask is not None:
      out = np.asarray(leaf)[~np.asarray(mask)]
      assert np.all(out == 0) and not np.any(np.signbit(out))
      number += out.size
  return number


def test_the_walk_finds_them():
  assert {"magnitude", "hold", "prune", "dynamic", "set"} <= set(OPTIMIZERS) and {
    "magnitude",
    "random",
    "taylor",
  } <= set(SCORES)
  assert {"lamp", "global_normalised"} <= set(NORMALISED)
  assert {"unstructured", "n_m"} <= set(PATTERNS) and {"uniform", "erk"} <= set(ALLOCATIONS)
  assert {"cubic", "one_shot", "periodic"} <= set(SCHEDULES)
  assert {"soft_threshold"} <= set(REPARAMS)


def test_every_file_of_methods_is_collected():
  """Files of the folders that are named for kinds, but for `base`, and files beside them with a public function."""
  inside = {
    module.name
    for folder in pkgutil.iter_modules(sparsity.__path__)
    if folder.ispkg
    for module in pkgutil.iter_modules([f"{path}/{folder.name}" for path in sparsity.__path__])
  }
  beside = {m.name for m in pkgutil.iter_modules(sparsity.__path__) if inspect.isfunction(getattr(sparsity, m.name, 0))}
  assert sorted((inside - {"base"} | beside) - set().union(*KINDS)) == []


@pytest.mark.sampled(3)
@every_bare_method
@pytest.mark.parametrize("inner", INNER)
def test_pruned_entries_are_exactly_zero(name, inner):
  tx, tree = make(name, relaxed(INNERS[inner]())), params()
  state = tx.init(tree)
  update = jax.jit(tx.update)
  for step in range(4):
    updates, state = update(gradients(step, tree), state, tree, step=jnp.int32(step))
    tree = optax.apply_updates(tree, updates)
    assert pruned(tree, state) > 0
  assert jnp.all(tree["first"]["bias"] != 0)


@every_bare_method
@pytest.mark.parametrize("inner", INNER)
def test_nothing_pruned_is_the_inner_optimizer_bitwise(name, inner):
  """Operation by operation: compiled as a whole, XLA may contract a product and a sum in one and not in the other."""
  plain, sparse = relaxed(INNERS[inner]()), make(name, relaxed(INNERS[inner]()), density=1.0)
  expected, _ = train(plain, params(zeros=False), 2, compiled=False)
  got, state = train(sparse, params(zeros=False), 2, compiled=False)
  assert pruned(got, state) == 0
  equal(got, expected)


@pytest.mark.sampled(3)
@every_method
def test_kept_entries_do_not_depend_on_the_pruned(name):
  """SGD moves each entry alone: where the masks always keep, the result is that of plain SGD, bit for bit."""
  plain, _ = train(optax.with_extra_args_support(optax.sgd(0.1)), params())
  tx, tree, state = sgd(name), params(), None
  always = True
  for step in range(4):
    tree, state = train(tx, tree, steps=1, start=step, state=state)
    always &= np.asarray(sparsity.masks(state)["second"]["kernel"])
    assert pruned(tree, state) > 0
  assert np.any(always)
  np.testing.assert_array_equal(tree["second"]["kernel"][always], plain["second"]["kernel"][always])


@pytest.mark.sampled(3)
@every_bare_method
def test_under_multisteps(name):
  """With two micro-batches per update: a mask that is made in a call whose result is thrown away is made again."""
  tx, tree = optax.MultiSteps(make(name, adam()), 2), params()
  state, update = tx.init(tree), jax.jit(tx.update)
  for micro in range(6):
    with jax.numpy_dtype_promotion("standard"):  # of MultiSteps itself
      updates, state = update(gradients(micro, tree), state, tree, step=jnp.int32(micro // 2))
    tree = optax.apply_updates(tree, updates)
    if micro:
      assert pruned(tree, state) > 0


@every_bare_method
def test_under_apply_if_finite(name):
  """A step that is not finite changes nothing; the next one is as if it had not been."""
  tx = optax.apply_if_finite(by_adam(name), 3)
  tree, state = train(tx, params(), steps=2)
  bad = jax.tree.map(lambda x: array(np.full(x.shape, np.nan), x.dtype), tree)
  updates, state = jax.jit(tx.update)(bad, state, tree, step=jnp.int32(2))
  equal(optax.apply_updates(tree, updates), tree)
  tree, state = train(tx, tree, steps=2, start=2, state=state)
  assert pruned(tree, state) > 0


@every_bare_method
def test_averages_are_masked(name):
  tree, state = train(by_adam(name), params())
  average = sparsity.apply_masks(sparsity.masks(state), jax.tree.map(lambda x: x + 1.0, tree))
  assert pruned(average, state) > 0
  np.testing.assert_array_equal(average["first"]["bias"], tree["first"]["bias"] + 1.0)


@pytest.mark.sampled(3)
@every_bare_method
def test_the_check_accepts_it_and_refuses_later_transformations(name):
  sparsity.check(by_adam(name), params())
  # A sum, not a factor: `hold` prunes what is zero already, and any multiple of its update is right.
  added = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u + 0.5, updates))
  with pytest.raises(Exception, match="something follows the sparse method"):
    sparsity.check(optax.chain(by_adam(name), added), params())


@pytest.mark.sampled(3)
@every_method
def test_one_compilation(name):
  tx, tree = by_adam(name), params()
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


@pytest.mark.sampled(3)
@every_method
def test_same_masks_on_all_devices(name):
  """With gradients averaged over four devices, replication is proved by the trace, and the result is one device's."""
  tx, tree = sgd(name), params()
  mesh = Mesh(np.asarray(jax.devices()[:4]), ("devices",))
  state, expected_state = tx.init(tree), tx.init(tree)

  def local(grads, state, tree):
    grads = jax.tree.map(lambda g: jax.lax.pmean(g[0], "devices"), grads)
    return tx.update(grads, state, tree, step=jnp.int32(0))

  grads = jax.tree.map(lambda g: np.round(64 * np.asarray(g)) / 64, gradients(0, tree))  # sums exact in any order
  shares = jax.tree.map(lambda g: np.stack([0.5 * g, 1.5 * g, g, g]), grads)
  split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P("devices"), P(), P()), out_specs=(P(), P())))
  updates, state = split(shares, state, tree)
  expected, expected_state = jax.jit(tx.update)(grads, expected_state, tree, step=jnp.int32(0))
  jax.tree.map(np.testing.assert_array_equal, sparsity.masks(state), sparsity.masks(expected_state))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


@pytest.mark.sampled(3)
@every_method
def test_through_a_checkpoint(name):
  """The state is arrays only: written out leaf by leaf and read back, training goes on bit for bit."""
  tx = by_adam(name)
  tree, state = train(tx, params(), steps=2)
  leaves, treedef = jax.tree.flatten((tree, state))
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  copies = [jnp.asarray(np.frombuffer(np.asarray(x).tobytes(), x.dtype).reshape(x.shape)) for x in leaves]
  tree2, state2 = treedef.unflatten(copies)
  equal(train(tx, tree2, start=2, state=state2), train(tx, tree, start=2, state=state))


@pytest.mark.sampled(3)
@every_method
def test_exact_counts_under_ties(name):
  """All magnitudes equal: each leaf still keeps the number asked for (methods with a density only)."""
  if "density" not in inspect.signature(METHODS[name]).parameters:
    pytest.skip("keeps what it finds: it has no density to reach")
  asked = {"a": (0.1, (6, 8)), "b": (0.33, (3, 3, 2, 4)), "c": (0.5, (6, 8)), "d": (0.9, (3, 3, 2, 4))}
  tree = {key: {"kernel": array(np.full(shape, 0.25), np.float32)} for key, (_, shape) in asked.items()}
  tx = make(name, optax.sgd(0.0), 0.5, lambda shapes, density: {name: asked[name[0]][0] for name in shapes})
  made = jax.jit(lambda grads: sparsity.masks(tx.update(grads, tx.init(tree), tree, step=jnp.int32(0))[1]))
  for key, mask in made(gradients(0, tree)).items():
    assert np.sum(mask["kernel"]) == round(mask["kernel"].size * asked[key][0])


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_finite_and_of_its_leaf_alone(name):
  """For w and g of every size, zeros too; one leaf's scores do not know how they are batched."""
  score, key = SCORES[name](), jax.random.key(3)
  for shape in ((7,), (4, 6), (3, 3, 2, 4)):
    w, g = (jnp.asarray(np.random.default_rng(s).normal(size=shape), jnp.float32) for s in (0, 1))
    for scale in (0.0, 1e-30, 1.0, 1e15):
      memory = score.init(w)
      if score.update is not None:
        memory = score.update(score.update(memory, scale * w, g), scale * w, g)
      got = score.of(name, scale * w, g, memory, step=jnp.int32(2), key=key)
      assert got.shape == shape and jnp.all(jnp.isfinite(got))
      again = score.of(name, scale * w, g, memory, step=jnp.int32(2), key=key)
      np.testing.assert_array_equal(got, again)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_criterion_in_each_pattern(name, pattern):
  """Exact counts in each pool, zeros where the mask prunes, in layers of one leaf; and at once the same."""
  before = tree = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 3)), jnp.float32)}
  pattern = PATTERNS[pattern]()
  density = {"density": 0.5} if pattern.density is None else {}
  tx = sparsity.prune(adam(), SCORES[name](), pattern, stacked=["kernel"], **density)
  tree, state = train(tx, tree, 2)
  assert pruned(tree, state) > 0
  for mask in sparsity.masks(state)["kernel"]:
    units = pattern.units("kernel", mask.shape)
    rows = pattern.split("kernel", jnp.asarray(np.asarray(mask[None]), jnp.float32)) > 0
    np.testing.assert_array_equal(rows.sum(1), sparsity.count(units, pattern.density or 0.5))
    np.testing.assert_array_equal(pattern.join("kernel", rows, mask.shape)[0], mask)
  grads = gradients(0, before)
  at_once = jax.jit(
    lambda tree, grads: sparsity.mask(tree, SCORES[name](), pattern, gradients=grads, stacked=["kernel"], **density)
  )
  masked = at_once(before, grads)
  want = np.where(sparsity.masks(train(tx, before, 1)[1])["kernel"], before["kernel"], 0)
  np.testing.assert_array_equal(masked["kernel"], want)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("shape", [(8, 3), (4, 4), (3, 2, 8, 5), (2, 3, 3, 4, 2)])
def test_a_pattern_keeps_exact_counts_and_the_largest(name, shape):
  """Under ties as well; what is kept in a pool is no smaller than what is pruned there, and join undoes split."""
  pattern, rng = PATTERNS[name](), np.random.default_rng(0)
  scores = jnp.asarray(np.round(rng.normal(size=shape) * 2), jnp.float32)
  units = pattern.units(name, shape)
  rows = np.asarray(pattern.split(name, scores[None]))
  assert rows.shape[1] == units and (rows.size < math.prod(shape) if pattern.gathers else rows.size == math.prod(shape))
  drawn = rng.random(rows.shape) < 0.5
  joined = pattern.join(name, jnp.asarray(drawn), shape)
  assert joined.shape == (1, *shape)
  np.testing.assert_array_equal(pattern.split(name, jnp.asarray(np.asarray(joined), jnp.float32)) > 0, drawn)
  if not pattern.gathers:
    np.testing.assert_array_equal(pattern.join(name, jnp.asarray(rows > 0), shape)[0], scores > 0)
  masked = jax.jit(lambda scores, keep: pattern.mask(scores, keep))
  for keep in sorted({0, 1, units // 2, units}):
    mask = np.asarray(pattern.split(name, jnp.asarray(np.asarray(masked(scores, keep)), jnp.float32)[None])) > 0
    np.testing.assert_array_equal(mask.sum(1), keep)
    for row, kept in zip(rows, mask, strict=True):
      assert keep in (0, units) or row[kept].min() >= row[~kept].max()
    equal_scores = masked(np.zeros(shape, np.float32), keep)  # the first of each pool
    want = np.broadcast_to(np.arange(units) < keep, rows.shape)
    np.testing.assert_array_equal(equal_scores, pattern.join(name, jnp.asarray(want), shape)[0])


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_an_allocation_gives_each_layer_a_density_and_together_the_whole(name):
  shapes = {"a": (3, 3, 4, 8), "b": (50, 70), "c": (7,), "d": (1, 1)}
  for density in (0.02, 0.3, 0.9, 1.0):
    shares = ALLOCATIONS[name](shapes, density)
    assert set(shares) == set(shapes) and all(0 < share <= 1 for share in shares.values())
    kept = sum(math.prod(shapes[key]) * share for key, share in shares.items())
    assert abs(kept - density * sum(map(math.prod, shapes.values()))) <= len(shapes)


@pytest.mark.parametrize("name", NORMALISED)
def test_normalised_scores_keep_the_order_of_a_layer_and_not_its_scale(name):
  """Ties and signs too; layers know nothing of each other, and zeros stay what they are."""
  rng = np.random.default_rng(0)
  rows = np.round(rng.normal(size=(3, 50)) * 4).astype(np.float32)
  rows[1] = np.abs(rows[1])
  normalise = jax.jit(NORMALISED[name])
  found = np.asarray(normalise(rows))
  for scale in (1e-30, 1e15):
    scaled = np.asarray(normalise(np.float32(scale) * rows))
    assert np.all(np.isfinite(scaled))
    np.testing.assert_allclose(scaled, found, rtol=1e-5)
  for row, new in zip(rows, found, strict=True):
    order = np.argsort(-row, kind="stable")  # among equals the earlier first, as masks have it
    assert np.all(np.diff(new[order]) <= 0)
    np.testing.assert_array_equal(np.argsort(-new, kind="stable"), order)
  np.testing.assert_array_equal(normalise(rows[1:2])[0], found[1])
  np.testing.assert_array_equal(normalise(np.zeros((2, 5), np.float32)), np.zeros((2, 5)))


TIMES = {"at": 3, "start": 2, "end": 11, "every": 4}
RISING = {"alternating", "cyclic"}  # they open the mask again, as their papers do


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_falls_to_the_final_density(name):
  make = SCHEDULES[name]
  schedule = make(**{key: value for key, value in TIMES.items() if key in inspect.signature(make).parameters})
  assert sparsity.schedules.check_schedule(schedule) is schedule
  found = [schedule.density(step, 0.2) for step in range(14)]
  assert found[0] == 1.0 and found[-1] == 0.2
  rises = [b for a, b in itertools.pairwise(found) if b > a]
  assert set(rises) == ({1.0} if name in RISING else set())


def loss_of(reparam, trained, step, train=True):
  """Of a made-up model, with what is trained reparameterized."""
  tree, aux = trained
  tree, _ = reparam.forward(tree, aux, step=step, key=jax.random.key(0), train=train)
  return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(tree)) + reparam.penalty(aux)


def steps_of(reparam, trained, steps):
  """Plain gradient descent on the parameters and aux; traced once."""
  traces = []

  @jax.jit
  def update(trained, step):
    traces.append(step)
    return jax.tree.map(lambda x, g: x - 0.1 * g, trained, jax.grad(functools.partial(loss_of, reparam))(trained, step))

  for step in steps:
    trained = update(trained, jnp.int32(step))
  assert len(traces) == 1
  return trained


@pytest.mark.parametrize("name", REPARAMS)
def test_a_reparam_starts_as_the_dense_net_without_penalty(name):
  """With its default arguments: structure, shapes and dtypes stay, and the loss is the dense net's to 0.1 %."""
  reparam, tree = REPARAMS[name](), params(zeros=False)
  aux = reparam.init(tree)
  new, _ = reparam.forward(tree, aux, step=jnp.int32(0), key=jax.random.key(0), train=True)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), new, tree)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert reparam.penalty(aux) == 0 and reparam.penalty(aux).shape == ()


@pytest.mark.parametrize("name", REPARAMS)
def test_a_reparam_exports_the_weights_that_it_evaluates(name):
  """A plain tree, for which step and key play no part, and whose zeros are +0."""
  reparam = REPARAMS[name]()
  trained = steps_of(reparam, (params(), reparam.init(params())), range(3))
  given = [{"step": jnp.int32(s), "key": jax.random.key(s), "train": False} for s in (0, 7)]
  first, second = (reparam.forward(*trained, **keywords)[0] for keywords in given)
  equal(first, second)
  plain = sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(first)) + reparam.penalty(trained[1])
  assert plain == loss_of(reparam, trained, jnp.int32(3), train=False)
  for leaf in map(np.asarray, jax.tree.leaves(first)):
    assert np.all(np.isfinite(leaf)) and not np.any(np.signbit(leaf[leaf == 0]))


@pytest.mark.parametrize("name", REPARAMS)
def test_a_reparam_does_not_hide_a_weight_that_is_not_finite(name):
  reparam, tree = REPARAMS[name](), params(zeros=False)
  aux = reparam.init(tree)
  for bad in (jnp.nan, jnp.inf, -jnp.inf):
    broken = {**tree, "second": {"kernel": tree["second"]["kernel"].at[0, 0, 0, 0].set(bad)}}
    for train in (True, False):
      new, _ = reparam.forward(broken, aux, step=jnp.int32(0), key=jax.random.key(0), train=train)
      np.testing.assert_array_equal(new["second"]["kernel"][0, 0, 0, 0], bad)


@pytest.mark.parametrize("name", REPARAMS)
def test_a_reparam_through_a_checkpoint(name):
  """Aux is arrays only: written out and read back, training continues bit for bit."""
  reparam = REPARAMS[name]()
  trained = steps_of(reparam, (params(), reparam.init(params())), range(2))
  leaves, treedef = jax.tree.flatten(trained)
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  copies = [jnp.asarray(np.frombuffer(np.asarray(x).tobytes(), x.dtype).reshape(x.shape)) for x in leaves]
  equal(steps_of(reparam, treedef.unflatten(copies), range(2, 4)), steps_of(reparam, trained, range(2, 4)))


def test_exceptions_name_what_exists():
  assert [key for key in EXCEPTIONS if key[0] == "sparsity" and (key[1] not in METHODS or key[2] not in CHECKS)] == []
