"""Parts of a model between named tensors: the taps of the whole, and its gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.errors import UserError
from tests.graph import models


def tensors_of(case):
  """The names of the tensors at which a slice may start or end, in the order of the model."""
  traced = graph.trace(case.fn, case.variables, case.x)
  names = {}
  for name, op in traced.sites.items():
    names |= {operand.tensor: None for operand in op.inputs if operand.tensor and not operand.tensor.endswith(":acc")}
    if op.kind != "output":
      names[name] = None
  return [name for name in names]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("framework", models.CASES)
def test_any_part_is_the_taps_of_the_whole(framework):
  """From each tensor to each: it equals the taps, or the model has a way round the tensor, which is named."""
  case = models.CASES[framework]()
  names = tensors_of(case)
  _, found = graph.taps(case.fn, names)(case.variables, case.x)
  equal = refused = 0
  for start, end in itertools.product(names, names):
    try:
      block = graph.slice(case.fn, case.variables, [start], [end], case.x)
    except UserError as error:
      assert "way round" in str(error) or "read by nothing" in str(error), error
      refused += 1
      continue
    part = block(case.variables, {start: found[start]})
    np.testing.assert_allclose(part[end], found[end], atol=1e-6, err_msg=f"{start} to {end}")
    equal += 1
  assert equal >= len(names) and refused


def test_other_numbers_go_in_and_gradients_come_out():
  """The slice of a residual block, and its gradients, against the same block written by hand."""
  key = jax.random.key(0)
  p = {name: models.normal(seed, 4, 4) for seed, name in enumerate("abcd")}

  def whole(p, x, key):
    x = jnp.tanh(x @ p["a"])
    y = jax.nn.relu(x @ p["b"])
    y = jnp.where(jax.random.bernoulli(key, 0.5, y.shape), y, 0)
    return (jax.nn.relu(y @ p["c"]) + x) @ p["d"]

  def by_hand(p, x, key):
    y = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), jax.nn.relu(x @ p["b"]), 0)
    return jax.nn.relu(y @ p["c"]) + x

  block = graph.slice(whole, p, ["a:out", "input_1"], ["c:add:out"], models.normal(9, 2, 4), key)
  x, small = models.normal(8, 5, 4), {"b": p["b"], "c": p["c"]}

  def loss(fn):
    return lambda p, x: jnp.sum(fn(p, x) ** 2)

  def sliced(p, x):
    return block(p, {"a:out": x, "input_1": key})["c:add:out"]

  for args in ((p, x), (small, x), (p, x[:1])):
    expected, hand = jax.value_and_grad(loss(lambda p, x: by_hand(p, x, key)), (0, 1))(*args)
    found, grads = jax.jit(jax.value_and_grad(loss(sliced), (0, 1)))(*args)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(hand), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
  assert graph.leaves_read(block, p, {"a:out": x, "input_1": key}) == {"b", "c"}


def test_blocks_one_after_the_other_are_the_model():
  case = models.conv_net()
  middle = next(name for name in tensors_of(case) if name.endswith(":add:out"))
  found = case.x
  for start, end in itertools.pairwise(["input", middle, "Dense_0/bias"]):
    found = graph.slice(case.fn, case.variables, [start], [end], case.x)(case.variables, {start: found})[end]
  np.testing.assert_allclose(found, case.fn(case.variables, case.x), atol=1e-6)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_a_slice_inside_of_a_call(wrap):
  @wrap
  def inner(p, x):
    y = jax.nn.relu(x @ p["b"])
    return y @ p["c"], jnp.sum(y)

  def whole(p, x):
    y, total = inner(p, x @ p["a"])
    return y @ p["d"], total

  p = {name: models.normal(seed, 4, 4) for seed, name in enumerate("abcd")}
  x = models.normal(7, 3, 4)
  (out, _), found = graph.taps(whole, ["b:out", "a:out", "c:out"])(p, x)
  block = graph.slice(whole, p, ["b:out"], ["d"], x)
  np.testing.assert_allclose(block(p, {"b:out": found["b:out"]})["d"], out, rtol=1e-5)
  block = graph.slice(whole, p, ["a:out"], ["b:out", "c:out"], x)
  part = block(p, {"a:out": found["a:out"]})
  for name in part:
    np.testing.assert_allclose(part[name], found[name], rtol=1e-5)
  if wrap is jax.jit:
    np.testing.assert_allclose(jax.grad(lambda x: block(p, {"a:out": x})["c:out"].sum())(found["a:out"]).shape, (3, 4))


def test_other_results_of_a_call_stay():
  """A jitted function returns the tensor where the slice begins, and another that is made of it."""

  @jax.jit
  def inner(p, x):
    y = x @ p["a"]
    return y, jnp.tanh(y)

  def whole(p, x):
    y, bent = inner(p, x)
    return y @ p["b"] + bent @ p["c"]

  p = {name: models.normal(seed, 4, 4) for seed, name in enumerate("abc")}
  y = models.normal(7, 3, 4)
  found = graph.slice(whole, p, ["a:out"], ["c:add"], y)(p, {"a:out": y})["c:add"]
  np.testing.assert_allclose(found, y @ p["b"] + jnp.tanh(y) @ p["c"], rtol=1e-5, atol=1e-5)


def test_a_whole_scan_in_a_slice():
  def whole(p, x):
    x = jnp.tanh(x @ p["a"])
    x = jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, p["blocks"])[0]
    return x @ p["d"]

  p = {"a": models.normal(0, 4, 4), "blocks": models.normal(1, 3, 4, 4), "d": models.normal(2, 4, 4)}
  x = models.normal(7, 3, 4)
  out, found = graph.taps(whole, ["a"])(p, x)
  block = graph.slice(whole, p, ["a"], ["d"], x)
  np.testing.assert_allclose(block(p, {"a": found["a"]})["d"], out, rtol=1e-6)
  with pytest.raises(UserError, match="a slice cannot begin or end at 'blocks': it is inside a scan"):
    graph.slice(whole, p, ["a"], ["blocks"], x)


def test_effects_outside_are_left_out():
  seen = []

  def whole(p, x):
    x = x @ p["a"]
    jax.debug.callback(seen.append, x.sum())
    return jnp.tanh(x) @ p["b"]

  p = {"a": models.normal(0, 4, 4), "b": models.normal(1, 4, 4)}
  block = graph.slice(whole, p, ["a:out"], ["b"], models.normal(2, 3, 4))
  block(p, {"a:out": jnp.ones((3, 4))})
  jax.effects_barrier()
  assert seen == []


@pytest.mark.parametrize(
  ("inputs", "outputs", "message"),
  [
    (["Dense_0/kernel:out"], ["Dense_1/kernl"], "unknown activation or operation 'Dense_1/kernl'; did you mean"),
    (["nothing"], ["Dense_1/bias"], "unknown activation or operation 'nothing'"),
    (["Dense_1/bias"], ["Dense_0/bias"], "'Dense_0/bias' depend on 'input' by a way round 'Dense_1/bias'"),
    (["input", "Dense_0/bias"], ["Dense_1/bias"], "the input 'input' of the slice is read by nothing"),
    ("input", ["Dense_1/bias"], "the inputs of a slice are 'input'; expected a list"),
    (["input"], [], r"the outputs of a slice are \[\]; expected a list"),
    (["input", "input"], ["Dense_1/bias"], "expected a list of different names"),
  ],
)
def test_a_mistake_is_one_sentence(inputs, outputs, message):
  case = models.mlp()
  with pytest.raises(UserError, match=message):
    graph.slice(case.fn, case.variables, inputs, outputs, case.x)


def test_wrong_tensors_and_variables_are_named():
  case = models.mlp()
  block = graph.slice(case.fn, case.variables, ["Dense_0/bias"], ["Dense_1/bias"], case.x)
  tensor = jnp.ones((2, 8))
  assert block(case.variables, {"Dense_0/bias": jnp.ones((7, 8))})["Dense_1/bias"].shape == (7, 3)
  for variables, tensors, message in (
    (case.variables, {"input": tensor}, "the tensors are .'input'.; expected a dict of 'Dense_0/bias'"),
    (case.variables, tensor, "expected a dict of 'Dense_0/bias'"),
    (case.variables, {"Dense_0/bias": jnp.ones((2, 9))}, r"'Dense_0/bias' is float32\[2,9\]; expected float32\[2,8\]"),
    (case.variables, {"Dense_0/bias": jnp.ones((2, 8), jnp.bfloat16)}, r"is bfloat16\[2,8\]; expected float32"),
    ({}, {"Dense_0/bias": tensor}, "the slice reads 'Dense_1/bias', which the variables do not hold"),
    ({"params": {"Dense_1": {"kernel": jnp.ones((3, 3))}}}, {"Dense_0/bias": tensor}, "'Dense_1/kernel' has the shape"),
  ):
    with pytest.raises(UserError, match=message):
      block(variables, tensors)
