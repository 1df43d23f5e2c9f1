"""Patterns against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsity
from leanax.core.errors import UserError
from sparsity import patterns
from tests.sparsity import nets


def oracle_n_m(scores, n, m, axis):
  """In each m consecutive entries along an axis the n largest, ties to the earlier; group by group."""
  moved = np.moveaxis(np.asarray(scores, np.float64), axis, -1)
  mask = np.zeros(moved.shape, bool)
  for row in np.ndindex(moved.shape[:-1]):
    for start in range(0, moved.shape[-1], m):
      group = moved[row][start : start + m]
      mask[row][start + np.argsort(-group, kind="stable")[:n]] = True
  return np.moveaxis(mask, -1, axis)


def scores(shape, seed=0):
  return np.round(np.random.default_rng(seed).normal(size=shape) * 2).astype(np.float32)


@pytest.mark.parametrize(
  ("shape", "n", "m", "axis"),
  [
    ((8, 5), 2, 4, -2),
    ((12, 3), 1, 4, -2),
    ((3, 3, 4, 2), 2, 4, -2),
    ((16, 2, 3), 4, 8, 0),
    ((4, 6), 2, 3, 1),
    ((8,), 1, 2, 0),
    ((80, 3), 1, 80, -2),
    ((4, 2), 4, 4, -2),
  ],
)
def test_n_m(shape, n, m, axis):
  x = scores(shape)
  mask = jax.jit(lambda x: patterns.n_m(n, m, axis).mask(x, n))
  np.testing.assert_array_equal(mask(x), oracle_n_m(x, n, m, axis))


def test_n_m_worked_case():
  """A column is a row of the product: its groups are of the inputs, and -1 is not larger than 0."""
  x = jnp.array([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 1.0]])
  np.testing.assert_array_equal(patterns.n_m(2, 4).mask(x, 2), [[1, 1], [1, 0], [0, 0], [0, 1]])


@pytest.mark.parametrize("axis", [0, 2])
def test_n_m_while_training_and_in_stacked_leaves(axis):
  rng = np.random.default_rng(3)
  layers = [rng.normal(size=(8, 3)).astype(np.float32) for _ in range(2)]
  tree = {
    "blocks": {"kernel": jnp.asarray(np.stack(layers, axis))},
    "conv": {"kernel": jnp.asarray(scores((3, 3, 4, 2)))},
  }
  tx = sparsity.prune(optax.adam(0.1), sparsity.criteria.magnitude(), patterns.n_m(2, 4), stacked=[("blocks/*", axis)])
  *_, (_, tree, state) = nets.train(tx, tree, 3)
  masks = nets.masks(state)
  got = np.moveaxis(np.asarray(masks["blocks"]["kernel"]), axis, 0)
  for mask, w in zip(got, layers, strict=True):
    np.testing.assert_array_equal(mask, oracle_n_m(np.abs(w), 2, 4, 0))
  np.testing.assert_array_equal(masks["conv"]["kernel"], oracle_n_m(np.abs(scores((3, 3, 4, 2))), 2, 4, 2))
  nets.assert_bit_zero(masks["conv"]["kernel"], tree["conv"]["kernel"])


def test_n_m_on_a_schedule_ends_at_n():
  tree = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(16, 4)), jnp.float32)}
  tx = sparsity.magnitude(optax.sgd(0.1), pattern=patterns.n_m(2, 8), schedule=sparsity.cubic(0, 6, 2))
  kept = [int(nets.masks(state)["kernel"].sum()) // 8 for _, _, state in nets.train(tx, tree, 7)]
  assert kept == [8, 8, 4, 4, 2, 2, 2]  # round(2 + 6 (1 - t/6)^3) of 8


def test_axes_by_leaf():
  tree = {"query": {"kernel": jnp.asarray(scores((8, 3, 5)))}, "dense": {"kernel": jnp.asarray(scores((4, 6)))}}
  tx = sparsity.magnitude(optax.sgd(0.0), pattern=patterns.n_m(2, 4, [("query/*", 0), ("*", -2)]))
  _, state = jax.jit(tx.update)(tree, jax.jit(tx.init)(tree), tree)
  masks = nets.masks(state)
  np.testing.assert_array_equal(masks["query"]["kernel"], oracle_n_m(np.abs(scores((8, 3, 5))), 2, 4, 0))
  np.testing.assert_array_equal(masks["dense"]["kernel"], oracle_n_m(np.abs(scores((4, 6))), 2, 4, 0))


def oracle_block(scores, rows, columns, keep):
  """The `keep` blocks of the last two axes with the largest entry, ties to the earlier; block by block."""
  scores, found = np.asarray(scores, np.float64), []
  for lead in np.ndindex(scores.shape[:-2]):
    for i in range(0, scores.shape[-2], rows):
      for j in range(0, scores.shape[-1], columns):
        place = (*lead, slice(i, i + rows), slice(j, j + columns))
        found.append((-scores[place].max(), len(found), place))
  mask = np.zeros(scores.shape, bool)
  for *_, place in sorted(found, key=lambda one: one[:2])[:keep]:
    mask[place] = True
  return mask


@pytest.mark.parametrize(
  ("shape", "rows", "columns", "keep"),
  [
    ((8, 6), 4, 2, 3),
    ((7, 5), 4, 2, 4),
    ((3, 3, 4, 5), 2, 5, 7),
    ((2, 3), 9, 9, 1),
    ((5, 1), 1, 1, 2),
    ((6, 4), 4, 1, 0),
  ],
)
def test_block(shape, rows, columns, keep):
  """Blocks that do not divide an axis, or are larger than it, as well."""
  x = scores(shape)
  got = jax.jit(lambda x: patterns.block(rows, columns).mask(x, keep))(x)
  np.testing.assert_array_equal(got, oracle_block(x, rows, columns, keep))


def test_block_worked_case():
  """Blocks of 2 x 2, the last ones of one column: their largest entries are 3, -1, 2 and 5."""
  x = jnp.array([[3.0, 0.0, -1.0], [0.0, 0.0, -9.0], [2.0, 2.0, 5.0], [2.0, 2.0, 0.0]])
  np.testing.assert_array_equal(
    patterns.block(2, 2).mask(x, 2), np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]], bool)
  )


@pytest.mark.parametrize("axis", [0, 2])
def test_block_while_training_and_in_stacked_leaves(axis):
  """By magnitude: entries of one block do not cancel each other."""
  rng = np.random.default_rng(3)
  layers = [rng.normal(size=(8, 3)).astype(np.float32) for _ in range(2)]
  tree = {
    "blocks": {"kernel": jnp.asarray(np.stack(layers, axis))},
    "conv": {"kernel": jnp.asarray(scores((3, 3, 4, 2)))},
  }
  tx = sparsity.magnitude(optax.adam(0.1), pattern=patterns.block(4, 2), density=0.5, stacked=[("blocks/*", axis)])
  *_, (_, tree, state) = nets.train(tx, tree, 3)
  masks = nets.masks(state)
  for mask, w in zip(np.moveaxis(np.asarray(masks["blocks"]["kernel"]), axis, 0), layers, strict=True):
    np.testing.assert_array_equal(mask, oracle_block(np.abs(w), 4, 2, 2))
  np.testing.assert_array_equal(masks["conv"]["kernel"], oracle_block(np.abs(scores((3, 3, 4, 2))), 4, 2, 4))
  nets.assert_bit_zero(masks["conv"]["kernel"], tree["conv"]["kernel"])


def test_blocks_of_one_entry_are_no_pattern():
  x = jnp.asarray(scores((9, 5)))
  every = jax.jit(lambda x: [one.mask(x, 13) for one in (patterns.block(1, 1), patterns.unstructured())])(x)
  np.testing.assert_array_equal(*every)


def test_blocks_of_all_leaves_as_one_and_from_a_threshold():
  rng = np.random.default_rng(5)
  tree = {name: {"kernel": jnp.asarray(rng.normal(size=(4, n)), jnp.float32)} for name, n in (("a", 4), ("b", 6))}
  largest = {name: np.abs(x["kernel"]).reshape(2, 2, -1, 2).max((1, 3), keepdims=True) for name, x in tree.items()}
  level = np.sort(np.concatenate([x.reshape(-1) for x in largest.values()]))[-4]  # 4 of 10 blocks
  by_block = lambda **keywords: jax.jit(lambda tree: sparsity.mask(tree, pattern=patterns.block(2, 2), **keywords))(
    tree
  )
  as_one, above = by_block(density=0.4, allocation="global"), by_block(threshold=float(level))
  for name, leaf in tree.items():
    blocks = np.asarray(leaf["kernel"]).reshape(2, 2, -1, 2)
    want = np.where(largest[name] >= level, blocks, 0).reshape(leaf["kernel"].shape)
    assert 0 < np.count_nonzero(want) < want.size
    np.testing.assert_array_equal(as_one[name]["kernel"], want)
    np.testing.assert_array_equal(above[name]["kernel"], want)


@pytest.mark.parametrize(
  ("pattern", "shape", "sentence"),
  [
    (patterns.n_m(2, 4), (6, 4), r"n_m: 'head/kernel' has 6 inputs, which groups of 4 do not divide; leave it out by"),
    (patterns.n_m(2, 4), (8,), r"n_m: the axis -2 does not exist in 'head/kernel' of shape \(8,\)"),
    (patterns.n_m(2, 4, [("body/*", 0)]), (8, 4), "n_m: no pair of axis= is for 'head/kernel'"),
    (patterns.n_m(2, 4, [("*", -3)]), (8, 4), "n_m: the axis -3 does not exist in 'head/kernel'"),
    (patterns.block(), (8,), r"block: 'head/kernel' has the shape \(8,\); expected rows and columns, or leave it out"),
    (patterns.block(), (4, 0), r"block: 'head/kernel' has the shape \(4, 0\); expected rows and columns"),
    (patterns.n_m(2, 4), (4, 0), r"n_m: 'head/kernel' of shape \(4, 0\) has no entries"),
  ],
)
def test_leaves_that_a_pattern_cannot_serve(pattern, shape, sentence):
  with pytest.raises(UserError, match=sentence):
    density = 0.5 if pattern.density is None else None
    sparsity.magnitude(optax.sgd(0.1), pattern=pattern, density=density).init({"head": {"kernel": jnp.ones(shape)}})


@pytest.mark.parametrize(
  ("keywords", "sentence"),
  [
    ({"density": 0.5}, "the pattern fixes its density, 0.5; expected no density, threshold or allocation"),
    ({"threshold": 0.5}, "the pattern fixes its density"),
    ({"allocation": "erk"}, "the pattern fixes its density"),
    ({"rules": [("kernel", 0.2)]}, "the sparsity rule of 'kernel' gives 0.2, but the pattern fixes its density"),
  ],
)
def test_a_pattern_that_fixes_its_density(keywords, sentence):
  with pytest.raises(UserError, match=sentence):
    sparsity.magnitude(optax.sgd(0.1), pattern=patterns.n_m(), **keywords).init({"kernel": jnp.ones((4, 4))})


def test_mistakes():
  for rows, columns, sentence in ((0, 1, "block: rows is 0; expected a whole"), (4, 1.5, "block: columns is 1.5")):
    with pytest.raises(UserError, match=sentence):
      patterns.block(rows, columns)
  for n, m, sentence in ((5, 4, "n is 5 and m is 4"), (0, 4, "n is 0; expected a whole"), (2, 4.0, "m is 4.0")):
    with pytest.raises(UserError, match=sentence):
      patterns.n_m(n, m)
  for axis in ("in", None, [1, 2], [("*", "in")]):
    with pytest.raises(UserError, match="n_m: axis is .*; expected a whole number, or"):
      patterns.n_m(2, 4, axis)
  with pytest.raises(UserError, match=r"the scores of 'scores' are int32\[4, 4\]; expected floats"):
    patterns.n_m().mask(jnp.ones((4, 4), jnp.int32), 2)
  with pytest.raises(UserError, match="pattern is '2:4'; expected such as sparsity.patterns.unstructured"):
    sparsity.magnitude(optax.sgd(0.1), density=0.5, pattern="2:4")
  with pytest.raises(
    UserError, match=r"'scores' has 4 entries to rank in each pool; expected a count in 0\.\.4, not 5"
  ):
    patterns.n_m().mask(jnp.ones((4, 4)), 5)


@pytest.mark.parametrize(("name", "axis"), [("channel", -1), ("row", -2)])
@pytest.mark.parametrize("shape", [(6, 5), (3, 3, 4, 6)])
def test_channels_and_rows_against_numpy(name, axis, shape):
  """The largest L1 norms along the axis are kept whole; of equal ones the first."""
  w = scores(shape)
  w[..., 2] = w[..., 1] if axis == -1 else w[..., 2]
  norms = np.abs(np.asarray(w, np.float64)).sum(tuple(i for i in range(w.ndim) if i != w.ndim + axis))
  keep = np.zeros(norms.size, bool)
  keep[np.argsort(-norms, kind="stable")[: round(norms.size / 2)]] = True
  want = w * (keep if axis == -1 else keep[:, None])
  for given in ({}, {"axis": axis}, {"axis": w.ndim + axis}):
    got = sparsity.mask({"kernel": jnp.asarray(w)}, None, getattr(patterns, name)(**given), density=0.5)
    np.testing.assert_array_equal(got["kernel"], want)


def test_a_row_or_channel_that_is_not_there():
  with pytest.raises(UserError, match=r"row: 'bias' of shape \(4,\) has no rows along axis -2; leave it out by rules="):
    sparsity.mask({"bias": jnp.ones(4)}, None, patterns.row(), density=0.5, rules=[("bias", True)])
  with pytest.raises(UserError, match="channel: axis is 0.5; expected a whole number"):
    patterns.channel(0.5)
