"""Channels physically removed: equal to the net in which nothing reads them."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from tests.graph import models

KEEP = {"stem/kernel": [0, 2, 5], "mid/kernel": [1, 3, 4, 7]}


@jax.custom_jvp
def softsign(x):
  return x / (1.0 + jnp.abs(x))


@softsign.defjvp
def softsign_rule(primals, tangents):
  (x,), (t,) = primals, tangents
  ones = jnp.broadcast_to(jnp.float32(1.5), x.shape)  # a shape in the rule, and a gradient that is not the function's
  return softsign(x), t * ones / jnp.square(1.0 + jnp.abs(x))


@jax.custom_vjp
def scaled(x, gain):
  return x * gain.reshape(1, 1, 1, gain.size)


def scaled_forward(x, gain):
  return scaled(x, gain), (x, gain)


def scaled_backward(residuals, g):
  x, gain = residuals
  wide = jax.lax.broadcast_in_dim(gain, x.shape, (3,))
  return 2.0 * g * wide, jnp.sum(g * x, (0, 1, 2)).reshape(gain.shape)


scaled.defvjp(scaled_forward, scaled_backward)


def conv(x, w):
  return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def net(variables, x, key=None):
  """A stem, scanned and checkpointed layers that keep its width, a batch norm in training mode, a depthwise layer."""
  p = variables["params"]
  x = softsign(conv(x, p["stem"]["kernel"]) + p["stem"]["bias"])

  @jax.checkpoint
  def block(x, w):
    y = jax.nn.relu(conv(x, w["kernel"]) + jax.lax.broadcast_in_dim(w["bias"], x.shape, (3,)))
    return scaled(x + y, w["gain"])

  x = jax.lax.scan(lambda x, w: (block(x, w), None), x, p["layers"])[0]
  x = conv(x, p["mid"]["kernel"])
  x = jax.nn.silu((x - x.mean((0, 1, 2))) * jax.lax.rsqrt(x.var((0, 1, 2)) + 1e-3))
  x = jax.lax.conv_general_dilated(
    x, p["depth"]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=8
  )
  if key is not None:
    x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, jnp.zeros(x.shape))
  x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
  return x.mean((1, 2)) @ p["head"]["kernel"]


def variables():
  shapes = {
    "stem": {"kernel": (3, 3, 3, 6), "bias": (6,)},
    "layers": {"kernel": (2, 3, 3, 6, 6), "bias": (2, 6), "gain": (2, 6)},
    "mid": {"kernel": (3, 3, 6, 8)},
    "depth": {"kernel": (3, 3, 1, 8)},
    "head": {"kernel": (8, 5)},
  }
  leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda s: isinstance(s, tuple))
  return {"params": jax.tree.unflatten(tree, [0.3 * models.normal(k, *shape) for k, shape in enumerate(leaves)])}


def masked(v):
  """Zero weights for whatever is read from a removed channel."""
  six, eight = (jnp.zeros(n).at[jnp.array(KEEP[site])].set(1.0) for n, site in ((6, "stem/kernel"), (8, "mid/kernel")))
  p = jax.tree.map(lambda leaf: leaf, v["params"])
  p["layers"]["kernel"] = p["layers"]["kernel"] * six[:, None]
  p["mid"]["kernel"] = p["mid"]["kernel"] * six[:, None]
  p["head"]["kernel"] = p["head"]["kernel"] * eight[:, None]
  return {"params": p}


@pytest.mark.parametrize("dropout", [pytest.param(False, marks=pytest.mark.slow), True])
def test_removed_equals_masked_and_gradients_too(dropout):
  v, x = variables(), models.images(2)
  more = (jax.random.key(5),) if dropout else ()
  _, small, edits = models.cut(net, v, KEEP, x, *more)
  assert {name: leaf.shape for name, leaf in named_leaves(small["params"]).items()} == {
    "stem/kernel": (3, 3, 3, 3),
    "stem/bias": (3,),
    "layers/kernel": (2, 3, 3, 3, 3),
    "layers/bias": (2, 3),
    "layers/gain": (2, 3),
    "mid/kernel": (3, 3, 3, 4),
    "depth/kernel": (3, 3, 1, 4),
    "head/kernel": (4, 5),
  }
  stored = graph.edit(net, *json.loads(json.dumps([edits, graph.shapes(v)])))

  def gradients(fn):
    def loss(v, x):
      out = fn(v, x, *more)
      return jnp.sum(jnp.sin(out) ** 2), out

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))

  x = models.images(3)  # another batch than the one it was cut with
  (small_gradient, by_x), out = gradients(stored)(small, x)
  (whole_gradient, expected_by_x), expected_out = gradients(lambda v, x, *more: net(masked(v), x, *more))(v, x)
  np.testing.assert_allclose(out, expected_out, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(by_x, expected_by_x, rtol=1e-4, atol=1e-5)
  _, expected, _ = models.cut(net, whole_gradient, KEEP, x, *more)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), small_gradient, expected)
  assert all(jnp.any(g != 0) for g in jax.tree.leaves(small_gradient))


def test_the_cut_function_traces_again():
  fn2, small, _ = models.cut(net, variables(), KEEP, models.images(1))
  found, whole = (graph.trace(f, v, models.images(1)) for f, v in ((fn2, small), (net, variables())))
  assert list(found.sites) == list(whole.sites)
  assert found.sites["stem/kernel"].macs == 64 * 9 * 3 * 3
  assert found.sites["depth/kernel"].macs * 2 == whole.sites["depth/kernel"].macs


def test_batch_norm_in_training_mode():
  case, keep = models.nnx_conv_net(), [0, 3]
  fn2, small, _ = models.cut(case.train, case.variables, {"conv/kernel": keep}, case.x)
  ones = jnp.zeros(4).at[jnp.array(keep)].set(1.0)[:, None]
  whole = jax.tree.map(lambda leaf: leaf, case.variables)
  for layer in ("block", "head"):
    whole["params"][layer]["kernel"] = whole["params"][layer]["kernel"] * ones
  logits, state = jax.jit(fn2)(small, case.x)
  expected, expected_state = jax.jit(case.train)(whole, case.x)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[jnp.array(keep)], rtol=1e-5), state, expected_state)


def dense_dense(between):
  def fn(variables, x):
    return between(x @ variables["a"]) @ variables["b"]

  return fn, {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}


@pytest.mark.parametrize(
  "between, name",
  [
    (lambda x: x - x.sum(1, keepdims=True), "reduce_sum"),
    (lambda x: x[:, ::2].repeat(2, 1), "slice"),
    (lambda x: jnp.sort(x, 1), "sort"),
    (lambda x: jax.lax.linalg.qr(x)[0][:, :4] @ jnp.ones((4, 4)) * x, "qr|householder"),
  ],
)
def test_operations_that_cannot_be_followed_are_refused_by_name(between, name):
  fn, v = dense_dense(between)
  with pytest.raises(UserError, match=rf"the channels of 'a' cannot be removed: .* through '.*({name})"):
    models.cut(fn, v, {"a": [0, 1]}, jnp.ones((5, 3)))


def grouped(x, groups, w):
  return jax.lax.conv_general_dilated(
    x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
  )


def swapped(x):
  return jnp.concatenate([x[:, 2:], x[:, :2]], 1)


def gated(up, gate):
  return up * jax.nn.silu(gate)


def padded(y, w):
  return jnp.tanh(y @ w) + jnp.pad(y, ((0, 0), (1, 2)))


def residual(y, w):
  return y + jax.nn.relu(grouped(y, 2, w))


# A function whose channels of zeros stay zeros, the shapes of its variables and of its input, what is kept of "a", and
# shapes of the variables afterwards.
FOLLOWED = {
  "a reshape": (
    lambda v, x: jax.nn.relu((x @ v["a"]).reshape(-1, 2, 3).swapaxes(1, 2).reshape(-1, 6)) @ v["b"],
    {"a": (4, 6), "b": (6, 3)},
    (5, 4),
    [0, 1, 3, 4],
    {"a": (4, 4), "b": (4, 3)},
  ),
  "halves that change places": (
    lambda v, x: swapped(jnp.tanh(x @ v["a"])) @ v["b"],
    {"a": (4, 5), "b": (5, 3)},
    (5, 4),
    [1, 2, 4],
    {"a": (4, 3), "b": (3, 3)},
  ),
  "a half of which nothing is left": (
    lambda v, x: swapped(jnp.tanh(x @ v["a"])) @ v["b"],
    {"a": (4, 5), "b": (5, 3)},
    (5, 4),
    [0, 1],
    {"a": (4, 2), "b": (2, 3)},
  ),
  "a gated unit": (
    lambda v, x: gated(*jnp.split(x @ v["a"], 2, 1)) @ v["b"],
    {"a": (4, 8), "b": (4, 3)},
    (5, 4),
    [0, 2, 3, 4, 6, 7],
    {"a": (4, 6), "b": (3, 3)},
  ),
  "two branches side by side": (
    lambda v, x: jnp.concatenate([jax.nn.relu(x @ v["a"]), x @ v["c"]], 1) @ v["b"],
    {"a": (4, 3), "c": (4, 2), "b": (5, 3)},
    (5, 4),
    [0, 2],
    {"a": (4, 2), "c": (4, 2), "b": (4, 3)},
  ),
  "a shortcut that is padded": (
    lambda v, x: padded(x @ v["a"], v["b"]) @ v["c"],
    {"a": (4, 3), "b": (3, 6), "c": (6, 3)},
    (5, 4),
    [0, 2],
    {"a": (4, 2), "b": (2, 5), "c": (5, 3)},
  ),
  "one channel of each group": (
    lambda v, x: residual(jax.nn.relu(conv(x, v["a"])), v["b"]).mean((1, 2)) @ v["c"],
    {"a": (3, 3, 3, 6), "b": (3, 3, 3, 6), "c": (6, 2)},
    (2, 5, 5, 3),
    [0, 2, 3, 5],
    {"a": (3, 3, 3, 4), "b": (3, 3, 2, 4), "c": (4, 2)},
  ),
  "a whole group": (
    lambda v, x: residual(jax.nn.relu(conv(x, v["a"])), v["b"]).mean((1, 2)) @ v["c"],
    {"a": (3, 3, 3, 6), "b": (3, 3, 3, 6), "c": (6, 2)},
    (2, 5, 5, 3),
    [3, 4, 5],
    {"a": (3, 3, 3, 3), "b": (3, 3, 3, 3), "c": (3, 2)},
  ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", FOLLOWED)
def test_channels_are_followed_through(name):
  """Removed equals zeroed, in the kernel that makes them and, where they are written anew, in the one that does."""
  fn, shapes, x, keep, expected = FOLLOWED[name]
  v = {key: models.normal(i, *shape) for i, (key, shape) in enumerate(shapes.items())}
  x = models.normal(9, *x)
  small, variables, _ = models.cut(fn, v, {"a": keep}, x[:1])
  assert {key: leaf.shape for key, leaf in variables.items()} == expected
  ones = jnp.zeros(v["a"].shape[-1]).at[jnp.array(keep)].set(1.0)
  whole = {**v, "a": v["a"] * ones}
  if name == "a shortcut that is padded":
    whole["b"] = v["b"].at[:, 2].set(0.0)  # channel 1 of "a", padded by one
  if "group" in name:
    whole["b"] = v["b"] * ones
  np.testing.assert_allclose(jax.jit(small)(variables, x), fn(whole, x), rtol=1e-5, atol=1e-5)


def test_channels_that_go_in_blocks_are_not_removed_one_by_one():
  fn, shapes, x, _, _ = FOLLOWED["one channel of each group"]
  v = {key: models.normal(i, *shape) for i, (key, shape) in enumerate(shapes.items())}
  with pytest.raises(UserError, match="'a' cannot be removed one by one: they are made of several axes, 2 and 3 long"):
    models.cut(fn, v, {"a": [0, 1, 2, 3]}, models.normal(9, *x))


def test_kept_indices_in_any_form():
  fn, v = dense_dense(jax.nn.relu)
  x = jnp.ones((5, 3))
  for keep in ([0, 2], (0, 2), np.array([0, 2]), jnp.array([0, 2], jnp.uint8), np.array([True, False, True, False])):
    _, small, edits = models.cut(fn, v, {"a": keep}, x)
    assert small["a"].shape == (3, 2) and edits == [{"edit": "keep_channels", "keep": {"a": [0, 2]}}]
  for keep in ([], [0.0, 2.0], np.zeros((1, 2), int), [2, 0], [0, 0], [-1], 3, [True, False], [False] * 4, "02", None):
    with pytest.raises(UserError, match="the kept channels of 'a' have to be ascending indices below 4"):
      models.cut(fn, v, {"a": keep}, x)


def test_sites_that_have_no_channels_of_their_own():
  class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
      return x + nn.MultiHeadDotProductAttention(num_heads=2, name="attn")(x)

  module, x = Attention(), models.normal(0, 2, 5, 6)
  variables = models.made(module, x)
  sites = graph.trace(module.apply, variables, x).sites
  product = next(name for name, op in sites.items() if op.kind == "dot" and op.kernel_index is None)
  for name, words in (
    ("attn/value/kernel", r"its kernel has 2 axes of outputs, \(2, 3\)"),
    (product, "it multiplies two activations"),
    (next(name for name, op in sites.items() if op.kind == "add"), "it is of the kind 'add'"),
  ):
    with pytest.raises(UserError, match=f"the channels of '{name}' cannot be removed: {words}; expected a convol"):
      models.cut(module.apply, variables, {name: [0]}, x)


def test_mistakes_are_named():
  fn, v = dense_dense(jax.nn.relu)
  x = jnp.ones((5, 3))
  with pytest.raises(UserError, match="unknown site 'aa'; did you mean 'a'"):
    models.cut(fn, v, {"aa": [0]}, x)
  with pytest.raises(UserError, match=r"'a' have to be ascending indices below 4, got \[1, 4\]"):
    models.cut(fn, v, {"a": [1, 4]}, x)
  with pytest.raises(UserError, match="'b' cannot be removed: the function returns them"):
    models.cut(fn, v, {"b": [0]}, x)
  with pytest.raises(UserError, match="'a' cannot be removed: they go with those of the function's input"):
    models.cut(lambda v, x: (x + x @ v["a"]) @ v["b"], {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 2))}, {"a": [0]}, x)
  fn2, small, _ = models.cut(fn, v, {"a": [0, 3]}, x)
  with pytest.raises(UserError, match=r"'a' has the shape \(3, 4\), expected \(3, 2\)"):
    fn2({**small, "a": v["a"]}, x)


@pytest.mark.parametrize("keep", [[0, 1], "a", None])
def test_kept_channels_are_a_dict_by_site(keep):
  fn, v = dense_dense(jax.nn.relu)
  with pytest.raises(UserError, match="what is kept is .*; expected a dict of channels by the site's name"):
    models.cut(fn, v, keep, jnp.ones((5, 3)))


@pytest.mark.parametrize("edits", [[3], "x", None, {"edit": "keep_channels"}])
def test_edits_that_are_not_a_list_of_dicts_are_refused(edits):
  fn, v = dense_dense(jax.nn.relu)
  with pytest.raises(UserError, match="the edits are .*; expected a list of dicts"):
    graph.edit(fn, edits, v)
