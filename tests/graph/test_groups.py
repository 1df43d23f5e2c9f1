"""Axes that are cut together: reordering a group's units changes nothing, and zeroing some is cutting them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.trees import map_named
from tests.graph import models

normal = models.normal


def changed(variables, members, change):
  """The variables with `change(leaf, axis, indices)` made to each member in turn."""
  by_leaf = {}
  for member in members:
    by_leaf.setdefault(member.leaf, []).append(member)

  def leaf(name, value):
    for member in by_leaf.get(name.removeprefix("params/"), ()):
      value = change(np.asarray(value), member.axis, member.indices)
    return value

  return map_named(leaf, variables)


def reordered(order):
  def change(leaf, axis, indices):
    where = np.arange(leaf.shape[axis])
    where[indices] = indices[order]
    return np.take(leaf, where, axis)

  return change


def zeroed(gone):
  def change(leaf, axis, indices):
    leaf = leaf.copy()
    leaf[(slice(None),) * axis + (indices[gone].reshape(-1),)] = 0
    return leaf

  return change


def cut(gone):
  def change(leaf, axis, indices):
    return np.delete(leaf, indices[gone].reshape(-1), axis)

  return change


def groups_of(fn, variables, x, *leaves):
  """The groups that are whole, of which each leaf (with an axis) given is a member of one."""
  found = [group for group in graph.groups(fn, variables, x) if not group.reason]
  members = {(member.leaf, member.axis) for group in found for member in group.members}
  assert set(leaves) <= members, set(leaves) - members
  return found


def check(fn, variables, x, found, tolerance=1e-6):
  """Every group may be reordered: the outputs are the same, to the order in which sums are taken."""
  run = jax.jit(fn)
  expected = run(variables, x)
  scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
  for number, group in enumerate(found):
    order = np.roll(np.random.default_rng(number).permutation(group.size), 1)
    order = order if np.any(order != np.arange(group.size)) else order[::-1]
    other = changed(variables, group.members, reordered(order))
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(variables), strict=True))
    for one, two in zip(jax.tree.leaves(run(other, x)), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(one / scale, two / scale, atol=tolerance, err_msg=str(group.members))


@pytest.mark.parametrize("framework", models.CASES)
def test_every_framework(framework):
  case = models.CASES[framework]()
  found = groups_of(case.fn, case.variables, case.x)
  assert found
  check(case.fn, case.variables, case.x, found)


class Block(nn.Module):
  """A transformer's block: layer norm, heads, a gated unit, residual streams."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(8, name="stem")(x)
    y = nn.LayerNorm(name="norm")(x)
    x = x + nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=12, name="heads")(y, y)
    a, b = jnp.split(nn.Dense(12, name="gated")(x), 2, -1)
    x = x + nn.Dense(8, name="down")(nn.gelu(a) * b)
    return nn.Dense(3, name="head")(x)


def test_a_transformer():
  x = normal(0, 2, 5, 4)
  variables = models.made(Block(), x)
  found = groups_of(Block().apply, variables, x)
  sizes = {tuple(sorted((m.leaf, m.axis) for m in group.members)): group for group in found}
  check(Block().apply, variables, x, found)
  stream = next(group for key, group in sizes.items() if ("stem/kernel", 1) in key)
  assert stream.size == 8 and any("'reduce_sum'" in reason for reason in stream.reduced)
  assert {("head/kernel", 0), ("down/kernel", 1), ("heads/out/kernel", 2), ("norm/scale", 0)} <= {
    (m.leaf, m.axis) for m in stream.members
  }
  heads = next(group for key, group in sizes.items() if ("heads/query/kernel", 1) in key)
  assert heads.size == 2 and ("heads/out/kernel", 0) in [(m.leaf, m.axis) for m in heads.members]
  gated = next(group for key, group in sizes.items() if ("gated/kernel", 1) in key)
  (member,) = [m for m in gated.members if m.leaf == "gated/kernel"]
  assert gated.size == 6 and member.indices.tolist() == [[i, i + 6] for i in range(6)]


def conv(x, w, groups=1):
  return jax.lax.conv_general_dilated(
    x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
  )


# Functions that take the shapes of leaves as they come, so that leaves may be cut: (fn, shapes, input, members)
NETS = {
  "residual": (
    lambda v, x: (jax.nn.relu(x @ v["a"] + v["bias"]) @ v["b"] + x @ v["c"]) @ v["d"],
    {"a": (4, 6), "bias": (6,), "b": (6, 5), "c": (4, 5), "d": (5, 3)},
    (2, 4),
    [("a", 1), ("b", 1), ("bias", 0), ("c", 1), ("d", 0)],
  ),
  "concatenated": (
    lambda v, x: jnp.tanh(jnp.concatenate([x @ v["a"], x @ v["b"]], -1)) @ v["c"],
    {"a": (4, 5), "b": (4, 3), "c": (8, 3)},
    (2, 4),
    [("a", 1), ("b", 1), ("c", 0)],
  ),
  "flattened": (
    lambda v, x: jax.nn.relu(conv(x, v["a"])).reshape(x.shape[0], -1) @ v["b"],
    {"a": (3, 3, 2, 4), "b": (36, 3)},
    (2, 3, 3, 2),
    [("a", 3), ("b", 0)],
  ),
  "flattened with channels first": (
    lambda v, x: conv(x, v["a"]).transpose(0, 3, 1, 2).reshape(x.shape[0], -1) @ v["b"],
    {"a": (3, 3, 2, 4), "b": (36, 3)},
    (2, 3, 3, 2),
    [("a", 3), ("b", 0)],
  ),
  "depthwise and pooled": (
    lambda v, x: nn.max_pool(conv(conv(x, v["a"]), v["b"], v["b"].shape[3]), (2, 2)).sum((1, 2)) @ v["c"],
    {"a": (3, 3, 2, 4), "b": (3, 3, 1, 4), "c": (4, 3)},
    (2, 4, 4, 2),
    [("a", 3), ("b", 3), ("c", 0)],
  ),
  "a batch norm": (
    lambda v, x: ((x @ v["a"] - v["mean"]) * jax.lax.rsqrt(jnp.square(v["var"]) + 1) * v["scale"]) @ v["b"],
    {"a": (4, 6), "mean": (6,), "var": (6,), "scale": (6,), "b": (6, 3)},
    (2, 4),
    [("a", 1), ("mean", 0), ("var", 0), ("scale", 0), ("b", 0)],
  ),
  "a scan of blocks": (
    lambda v, x: (
      jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w[0]) @ w[1], None), x @ v["a"], (v["up"], v["down"]))[0] @ v["b"]
    ),
    {"a": (4, 5), "up": (3, 5, 6), "down": (3, 6, 5), "b": (5, 3)},
    (2, 4),
    [("a", 1), ("up", 1), ("up", 2), ("down", 1), ("down", 2), ("b", 0)],
  ),
  "heads": (
    lambda v, x: (
      jnp.einsum(
        "bqk,bkhd->bqhd",
        jnp.einsum("bqhd,bkhd->bqk", *(jnp.einsum("bsc,chd->bshd", x, v[k]) for k in "qk")),
        jnp.einsum("bsc,chd->bshd", x, v["v"]),
      ).reshape(*x.shape[:2], -1)
      @ v["out"]
    ),
    {"q": (4, 2, 3), "k": (4, 2, 3), "v": (4, 2, 5), "out": (10, 3)},
    (2, 3, 4),
    [("q", 1), ("k", 1), ("q", 2), ("k", 2), ("v", 1), ("v", 2), ("out", 0)],
  ),
  "an embedding": (
    lambda v, x: jnp.tanh(v["table"][jnp.abs(x[:, 0] * 3).astype(jnp.int32) % 7]) @ v["b"],
    {"table": (7, 5), "b": (5, 3)},
    (2, 4),
    [("table", 1), ("b", 0)],
  ),
  "a branch": (
    lambda v, x: jax.lax.cond(x.sum() > 0, lambda h: jnp.tanh(h) * v["s"], lambda h: h, x @ v["a"]) @ v["b"],
    {"a": (4, 5), "s": (5,), "b": (5, 3)},
    (2, 4),
    [("a", 1), ("s", 0), ("b", 0)],
  ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", NETS)
def test_zeroed_is_cut_and_reordered_is_the_same(name):
  fn, shapes, x, expected = NETS[name]
  variables = {key: np.asarray(normal(seed, *shape)) for seed, (key, shape) in enumerate(shapes.items())}
  x = normal(9, *x)
  found = groups_of(fn, variables, x, *expected)
  check(fn, variables, x, found)
  for group in found:
    assert not group.reduced
    for gone in ([0], [group.size - 1]):
      without = fn(changed(variables, group.members, zeroed(gone)), x)
      small = changed(variables, group.members, cut(gone))
      assert sum(leaf.size for leaf in small.values()) < sum(leaf.size for leaf in variables.values())
      np.testing.assert_allclose(fn(small, x), without, rtol=1e-5, atol=1e-5)


def test_kept_channels_are_the_group():
  """keep_channels leaves exactly the leaves without the group's other units."""
  case = models.nnx_conv_net()
  group = next(
    g for g in groups_of(case.fn, case.variables, case.x) if ("conv/kernel", 3) in {m[:2] for m in g.members}
  )
  net = graph.keep_channels(graph.net(case.fn, case.variables, case.x), {"conv/kernel": [0, 2, 3]})
  ours = changed(case.variables, group.members, cut([1]))
  for one, other in zip(jax.tree.leaves(net.variables), jax.tree.leaves(ours), strict=True):
    np.testing.assert_array_equal(one, other)
  without = changed(case.variables, group.members, zeroed([1]))
  np.testing.assert_allclose(net.infer(ours, case.x), case.fn(without, case.x), atol=1e-5)


def test_grouped_convolutions():
  def fn(v, x):
    return conv(jnp.tanh(conv(x, v["a"])), v["b"], 2).sum((1, 2)) @ v["c"]

  variables = {"a": normal(0, 1, 1, 3, 4), "b": normal(1, 3, 3, 2, 6), "c": normal(2, 6, 3)}
  x = normal(3, 2, 4, 4, 3)
  found = groups_of(fn, variables, x, ("a", 3), ("b", 2), ("b", 3), ("c", 0))
  assert sorted(group.size for group in found) == [2, 2, 3]
  check(fn, variables, x, found)


def test_channels_that_are_shuffled_sliced_padded_and_split_unevenly():
  def fn(v, x):
    y = x @ v["a"]  # 12
    y = y.reshape(-1, 3, 4).swapaxes(1, 2).reshape(-1, 12)
    left, right = jnp.tanh(y @ v["b"])[:, :4], (y @ v["b"])[:, 4:]
    wide = jnp.pad(left, ((0, 0), (0, 3)))
    return jnp.concatenate([wide + right @ v["c"], right], -1) @ v["d"]

  variables = {"a": normal(0, 5, 12), "b": normal(1, 12, 10), "c": normal(2, 6, 7), "d": normal(3, 13, 2)}
  x = normal(4, 3, 5)
  found = groups_of(fn, variables, x, ("a", 1), ("b", 0), ("b", 1), ("c", 0), ("c", 1), ("d", 0))
  assert sorted(group.size for group in found) == [3, 3, 4, 4, 6]
  check(fn, variables, x, found)


def test_axes_whose_parts_end_at_different_places():
  """An axis of 24 is read as (2, 12) and as (6, 4), so as (2, 3, 4); one of 8 is 3 + 5 and 6 + 2, so 3 + 3 + 2."""

  def fn(v, x):
    y = jnp.tanh(x @ v["a"])  # 24
    for name in ("b", "c"):
      y = (y.reshape(-1, *v[name].shape) * v[name]).reshape(-1, 24)
    row = jnp.concatenate([x @ v["d"], x @ v["e"]], -1) * jnp.concatenate([v["f"], v["g"]])
    return y @ v["h"], row @ v["i"]

  shapes = {"a": (5, 24), "b": (2, 12), "c": (6, 4), "d": (5, 3), "e": (5, 5), "f": (6,), "g": (2,)}
  shapes |= {"h": (24, 2), "i": (8, 2)}
  variables = {name: normal(k, *shape) for k, (name, shape) in enumerate(shapes.items())}
  x = normal(20, 3, 5)
  found = groups_of(fn, variables, x, ("a", 1), ("b", 0), ("b", 1), ("c", 0), ("d", 1), ("e", 1), ("f", 0), ("g", 0))
  assert sorted(group.size for group in found) == [2, 2, 3, 3, 3, 4]
  check(fn, variables, x, found)


@pytest.mark.parametrize(
  ("fn", "reason"),
  [
    (lambda v, x: jnp.sort(x @ v["a"], -1) @ v["b"], "'sort' (test_groups.py, line "),
    (lambda v, x: jnp.cumsum(x @ v["a"], -1) @ v["b"], "'cumsum' (test_groups.py, line "),
    (lambda v, x: (x @ v["a"])[:, ::-1] @ v["b"], "'rev' (test_groups.py, line "),
    (lambda v, x: (x @ v["a"] * jnp.arange(6.0)) @ v["b"], "'iota' (test_groups.py, line "),
    (lambda v, x: (x @ v["a"] * np.arange(6, dtype=np.float32)) @ v["b"], "an array among the function's constants"),
    (lambda v, x: (x @ v["a"]).at[:, 1].add(1.0) @ v["b"], "'scatter-add' (test_groups.py, line "),
    (lambda v, x: jnp.fft.fft(x @ v["a"]).real @ v["b"], "'fft' (test_groups.py, line "),
    (lambda v, x: (x @ v["a"], x @ v["a"] @ v["b"]), "an axis that the function returns"),
    (
      lambda v, x: jnp.einsum("ni,nj->nij", *[x @ v["a"]] * 2).reshape(-1, 36) @ v["c"],
      "an axis that is flattened with itself",
    ),
  ],
)
def test_operations_that_cannot_be_followed_are_named_with_their_line(fn, reason):
  variables, x = {"a": normal(0, 4, 6), "b": normal(1, 6, 3), "c": normal(3, 36, 2)}, normal(2, 2, 4)
  found = [g for g in graph.groups(fn, variables, x) if ("a", 1) in {m[:2] for m in g.members}]
  assert found and all(group.reason.startswith(reason) for group in found), [group.reason for group in found]


def test_numbers_are_not_needed():
  case = models.mlp()
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (case.variables, case.x))
  found, other = graph.groups(case.fn, *shapes), graph.groups(case.fn, case.variables, case.x)
  assert [[m[:2] for m in g.members] for g in found] == [[m[:2] for m in g.members] for g in other]
