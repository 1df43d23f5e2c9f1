"""Files of models that read one leaf in slices, turned, or twice in two layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax import deploy
from leanax.deploy import litert
from tests.numbers import array


def data(shape, seed=0):
  return array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


SPREAD = data((12, 12), 1) * jnp.geomspace(0.05, 5, 12) * jnp.geomspace(0.05, 5, 12)[:, None]


def sliced(v, x):
  return jax.nn.relu(x @ v["w"][0]) @ v["w"][1]


def tied(v, x):
  w = v["w"]
  return jax.nn.relu(jax.nn.relu(x @ w) @ w.T) @ w.T


def halved(v, x):
  return jax.nn.relu(x @ v["w"][:6, ::-1]) @ v["w"].reshape(2, 6, 12)[1].T


def turned_convolution(v, x):
  h = jax.lax.conv_general_dilated(
    x, v["w"].transpose(1, 2, 3, 0), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  return jax.nn.relu(h).mean((1, 2)) @ v["u"].T


CASES = {
  sliced: ({"w": jnp.stack([data((12, 12), 1), 0.02 * data((12, 12), 2)])}, (32, 12)),
  tied: ({"w": SPREAD}, (32, 12)),
  halved: ({"w": SPREAD}, (32, 6)),
  turned_convolution: ({"w": SPREAD[:, :9].reshape(12, 3, 3, 1), "u": SPREAD}, (8, 6, 6, 1)),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fn", CASES, ids=lambda fn: fn.__name__)
def test_a_file_has_the_codes_of_the_slice_that_each_layer_reads(fn):
  variables, shape = CASES[fn]
  x = data(shape, 9)
  model = quant.quantize(fn, "w8a8")
  qparams, state = model.init(variables, x)
  network = deploy.lift(fn, variables, x, model.grids(qparams, state, variables, x))
  simulated = np.asarray(model.apply(qparams, state, variables, x)[0])
  found = deploy.parity(network, litert().open(litert().write(network)), np.asarray(x), simulated)
  assert found["reference/runtime"].count == 0
  assert found["simulation/reference"].max_steps <= 1
  assert found["simulation/reference"].count <= 0.01 * found["simulation/reference"].total


def test_several_output_axes_have_a_scale_for_each_of_their_entries():
  fn = lambda v, x: jnp.einsum("bd,dhk->bhk", x, v["w"])
  variables, x = {"w": data((6, 4, 8), 1)}, data((3, 6), 9)
  model = quant.quantize(fn, "w8a8")
  qparams, state = model.init(variables, x)
  grids = model.grids(qparams, state, variables, x)
  assert grids["w"].scale.shape == (4, 8)
  network = deploy.lift(fn, variables, x, grids)
  assert network.tensors["w"].scale.shape == (32,)
  simulated = np.asarray(model.apply(qparams, state, variables, x)[0])
  found = deploy.parity(network, litert().open(litert().write(network)), np.asarray(x), simulated)
  assert {pair: mismatch.count for pair, mismatch in found.items()} == dict.fromkeys(found, 0)


def test_several_axes_of_a_leaf_that_are_one_output_axis_are_written():
  fn = lambda v, x: x @ v["w"].reshape(6, 32)
  variables, x = {"w": data((6, 4, 8), 1)}, data((3, 6), 9)
  model = quant.quantize(fn, "w8a8")
  grids = model.grids(*model.init(variables, x), variables, x)
  network = deploy.lift(fn, variables, x, grids)
  w = np.asarray(variables["w"], np.float64).reshape(6, 32)
  np.testing.assert_array_equal(network.tensors["w"].data, np.round(w / (np.abs(w).max(0) / 127)))
