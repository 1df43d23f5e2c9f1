"""An off-by-one planted in the simulation, in the reference or in the writer shows in the three-way comparison.

The network is dense, so without a fault no code differs anywhere; with one, the two pairs that contain the faulty part
differ and the third still agrees.
"""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import deploy
from leanax.deploy import ir, litert, reference, requantize
from leanax.deploy.formats.litert import writer
from leanax.zoo.mlp import MLP
from quant.quantize import quantize
from tests.numbers import initial, normal


def simulated_and_lifted():
  """A dense stack as an integer network, inputs, and what its simulation gives for them."""
  net = MLP(widths=(32, 24))
  x = normal(0, (128, 4, 5, 1))
  variables = initial(net, x[:1])
  variables = jax.tree.map(lambda w: jnp.asarray(np.asarray(w) + np.float32(0.1)) if w.ndim == 1 else w, variables)
  model = quantize(net.apply, "w8a8")
  qparams, state = model.init(variables, x)
  grids = model.grids(qparams, state, variables, x)
  network = deploy.lift(net.apply, variables, x, grids)
  simulated, _ = jax.jit(model.apply)(qparams, state, variables, x)
  return network, np.asarray(x), np.asarray(simulated)


without_fault = functools.cache(simulated_and_lifted)


def compared(made=without_fault):
  """The simulation, the reference and the file, compared two by two; `made` anew where the fault is in the making."""
  network, x, simulated = made()
  return deploy.parity(network, litert().open(litert().write(network)), x, simulated)


def culprit(found):
  """The part that both differing pairs have in common."""
  differing = {pair for pair, mismatch in found.items() if mismatch.count}
  parts = [set(pair.split("/")) for pair in differing]
  return set.intersection(*parts) if parts else set()


def test_without_a_fault_nothing_differs():
  found = compared()
  assert {pair: mismatch.count for pair, mismatch in found.items()} == dict.fromkeys(found, 0)
  assert all(mismatch.total == 1280 for mismatch in found.values())


def rounds_down(u, zero_point):
  return jnp.floor(u) + zero_point


def one_more(u, zero_point):
  return jnp.round(u) + 1.0 + zero_point


@pytest.mark.parametrize("fault", [rounds_down, one_more])
def test_a_fault_in_the_simulation_shows(monkeypatch, fault):
  monkeypatch.setattr(importlib.import_module("quant.formats.integer"), "rounded", fault)
  found = compared(simulated_and_lifted)
  assert culprit(found) == {"simulation"}, found


def truncating(acc, real, rounding):
  return np.floor(acc.astype(np.float32) * np.asarray(real, np.float32)).astype(np.int64)


def double(acc, real, rounding):
  return requantize.fixed_point(acc, *requantize.quantized_multiplier(np.asarray(real, np.float64)), "double")


FAMILIES = (reference.context, reference.weighted, reference.pools, reference.elementwise)
REFERENCE = {
  "rounds down": ("scaled", truncating),
  "rounds twice": ("scaled", double),
  "zero point": ("steps_of", lambda codes, tensor: codes.astype(np.int64) - tensor.zero_point - 1),
  "clips early": ("codes_of", lambda steps, tensor, relu=False: np.clip(steps + tensor.zero_point, -127, 126)),
}


@pytest.mark.parametrize("fault", REFERENCE)
def test_a_fault_in_the_reference_shows(monkeypatch, fault):
  name, wrong = REFERENCE[fault]
  for family in FAMILIES:
    if hasattr(family, name):
      monkeypatch.setattr(family, name, lambda *args, **kwargs: _as(name, wrong(*args, **kwargs)))
  found = compared()
  assert culprit(found) == {"reference"}, found


def _as(name, made):
  return made.astype(np.int8) if name == "codes_of" else made


def changed(what, by):
  """The writer's packing with one kind of tensor changed."""
  true = writer._tensor

  def wrong(flat, tensor, *others):
    return true(flat, by(tensor) if what(tensor) else tensor, *others)

  return wrong


def moved(tensor, **change):
  return tensor._replace(grid=dataclasses.replace(tensor.grid, **change))


def is_weights(tensor):
  return tensor.dtype == "int8" and tensor.data is not None


WRITER = {
  "zero point": (
    lambda t: t.dtype == "int8" and t.data is None,
    lambda t: moved(t, zero_point=np.array(t.zero_point + 1)),
  ),
  "bias": (lambda t: t.dtype == "int32" and t.grid is not None, lambda t: t._replace(data=t.data + 60)),
  "weights": (is_weights, lambda t: t._replace(data=np.minimum(t.data + 1, 127))),
  "channels": (is_weights, lambda t: moved(t, scale=np.roll(t.scale, 1))),
  "transposed": (is_weights, lambda t: t._replace(data=t.data[::-1])),
}


@pytest.mark.parametrize("fault", WRITER)
def test_a_fault_in_the_writer_shows(monkeypatch, fault):
  monkeypatch.setattr(writer, "_tensor", changed(*WRITER[fault]))
  found = compared()
  assert culprit(found) == {"runtime"}, found


def test_codes_of_the_lifter_are_under_the_same_test(monkeypatch):
  monkeypatch.setattr(deploy.integers.np, "rint", np.floor)
  found = compared(simulated_and_lifted)
  assert found["simulation/reference"].count
  assert found["simulation/runtime"].count


def test_a_single_flipped_code_is_counted():
  a = np.zeros((100, 10), np.int8)
  b = a.copy()
  b[3, 4] = 1
  assert deploy.compare(a, b) == deploy.Mismatch(1, 1000, 1)
  assert ir.QMAX == 127
