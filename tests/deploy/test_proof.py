"""Lifted networks are proven as a whole, beside each of their layers."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy.lifting.traced import Traced

module = importlib.import_module("leanax.deploy.lift")


def rewired(network):
  """Another layer reads what the first one makes."""
  (c,) = (layer for layer in network.layers if layer.name == "c")
  wrong = dataclasses.replace(c, inputs=(network.layers[0].output,))
  return network._replace(layers=tuple(wrong if layer is c else layer for layer in network.layers))


def exchanged(network):
  names, tensors = list(network.outputs), list(network.outputs.values())
  return network._replace(outputs=dict(zip(names, tensors[::-1], strict=True)))


@pytest.mark.parametrize("fault", [rewired, exchanged])
def test_right_layers_in_a_wrong_place_are_caught(monkeypatch, fault):
  at_random = np.random.default_rng(0)
  variables = {name: at_random.normal(size=(4, 4)).astype(np.float32) for name in "abc"}

  def fn(v, x):
    first = jax.nn.relu(x @ v["a"])
    return {"one": first + jax.nn.relu(first @ v["b"]) @ v["c"], "two": first}

  x, true = jax.ShapeDtypeStruct((1, 4), jnp.float32), module._network
  deploy.lift(fn, variables, x)
  monkeypatch.setattr(module, "_network", lambda *args: fault(true(*args)))
  with pytest.raises(UserError, match="its layers, each of them right, do not make its output 'one'"):
    deploy.lift(fn, variables, x)


def test_a_function_with_steps_is_proven():
  x, w = jax.ShapeDtypeStruct((1, 50, 4), jnp.float32), np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
  assert deploy.lift(lambda v, x: jnp.sign(x @ v["w"]) @ v["w"], {"w": w}, x).layers


def test_more_equations_behind_each_other_than_python_has_frames_are_run():
  def fn(v, x):
    for _ in range(1500):
      x = -x
    return x + v

  traced = Traced(fn, np.float32(2), jax.ShapeDtypeStruct((1, 3), jnp.float32))
  x = np.arange(6, dtype=np.float32).reshape(2, 3)
  ((found,),) = traced.run([(tuple(traced.outputs.values()), dict.fromkeys(traced.inputs.values(), x))])
  np.testing.assert_array_equal(found, x + 2)


def test_rows_at_indices_that_the_function_shifts_are_proven():
  table = {"rows": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
  for shift in (1, 7):  # behind the last row there are none to compare
    network = deploy.lift(
      lambda v, at, shift=shift: v["rows"][at + shift], table, jax.ShapeDtypeStruct((1, 5), jnp.int32)
    )
    assert network.layers
