"""Biases of every shape, in steps of both scales, and kernels so small that they are wide."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from quant.policy import policy
from quant.quantize import quantize
from tests.quant.test_calibration import data, decibels

IMAGES = data((2, 6, 6, 3), 7)
ROWS = data((5, 4), 8)
CONV = nn.Conv(2, (3, 3)).apply
GENERAL = nn.DenseGeneral((2, 3)).apply


def channels_first(v, x):
  return jax.lax.conv_general_dilated(x.transpose(0, 3, 1, 2), v["w"], (1, 1), "SAME") + v["b"]


def split(v, x):
  return (x @ v["w"]).reshape(x.shape[0], 2, 3).transpose(0, 2, 1) + v["b"]


def vmapped(v, x):
  return jax.vmap(lambda x: v["w"].T @ x + v["b"])(x)


def shared(v, x):
  return x @ v["w"] + v["b"][:1]


def scanned(v, x):
  return jax.lax.scan(lambda x, wb: (x @ wb[0] + wb[1], None), x, (v["w"], v["b"]))[0]


CASES = {
  "conv": (CONV, {"params": {"kernel": data((3, 3, 3, 2)), "bias": jnp.array([5.0, -4.5])}}, IMAGES),
  "channels first": (channels_first, {"w": data((4, 3, 3, 3)), "b": data((4, 1, 1))}, IMAGES),
  "several axes": (GENERAL, {"params": {"kernel": data((4, 2, 3)), "bias": data((2, 3), 2)}}, ROWS),
  "split": (split, {"w": data((4, 6)), "b": data((3, 2), 2)}, ROWS),
  "vmapped": (vmapped, {"w": data((4, 6)), "b": data((6,), 2)}, ROWS),
  "one for all": (shared, {"w": data((4, 6)), "b": data((6,), 2)}, ROWS),
  "scanned": (scanned, {"w": data((3, 4, 4)), "b": data((3, 4), 2)}, ROWS),
}


def started(fn, variables, x, spec="w8a8"):
  """The quantized model with the grids of one batch."""
  model = quantize(fn, spec)
  return model, *model.init(variables, x)


def scaled(variables, factor):
  """The variables with their kernels, which have the most axes, times a factor."""
  most = max(leaf.ndim for leaf in jax.tree.leaves(variables))
  kernels = lambda path, leaf: leaf.ndim == most and path[-1].key in ("kernel", "w")
  return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * factor if kernels(path, leaf) else leaf, variables)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("spec", ["w8a8", "w4a4 learned start=range", "w8a8 per_tensor"])
@pytest.mark.parametrize("name", CASES)
def test_a_bias_of_a_tiny_kernel_is_kept(name, spec):
  fn, variables, x = CASES[name]
  variables = scaled(variables, 1e-7)
  model, *held = started(fn, variables, x, policy({"output": "float", "*": spec}, ends=None))
  run = jax.jit(lambda q, s, v, x: (fn(v, x), model.apply(q, s, v, x)[0], model.grids(q, s, v, x)))
  exact, found, grids = run(*held, variables, x)
  assert decibels(exact, found) > (20 if name == "scanned" else 60)
  for grid in grids.values():
    assert np.all(np.isfinite(grid.scale))


def test_only_channels_whose_bias_does_not_fit_get_a_wider_step():
  w = data((4, 3)) * 1e-8
  variables = {"w": w, "b": jnp.array([1e-4, 7.0, 0.0])}
  fn = lambda v, x: x @ v["w"] + v["b"]
  model, qparams, state = started(fn, variables, ROWS)
  grids = model.grids(qparams, state, variables, ROWS)
  largest = np.abs(np.asarray(w, np.float64)).max(0)
  scale, step = np.asarray(grids["w"].scale, np.float64), np.float64(grids["input"].scale)
  np.testing.assert_allclose(scale[[0, 2]], largest[[0, 2]] / 127, rtol=1e-6)
  assert 2**29 < 7.0 / (scale[1] * step) <= 2**31 - 1


@pytest.mark.parametrize("spec", ["w8a8", "w8a8 learned"])
def test_a_bias_that_grew_in_training_still_fits(spec):
  """Learned scales, and static ones, are raised where they are used, and `grids` hands out what `apply` uses."""
  fn = lambda v, x: x @ v["w"] + v["b"]
  variables = {"w": data((4, 3)) * 1e-6, "b": jnp.zeros(3)}
  model, qparams, state = started(fn, variables, ROWS, policy({"output": "float", "*": spec}))
  scale = jax.jit(lambda v: model.grids(qparams, state, v, ROWS)["w"].scale)
  before = scale(variables)
  later = {**variables, "b": jnp.array([300.0, -400.0, 0.0])}
  out = lambda v: model.apply(qparams, state, v, ROWS)[0]
  assert decibels(fn(later, ROWS), jax.jit(out)(later)) > 90
  after = scale(later)
  assert np.all(after[:2] > before[:2]) and after[2] == before[2]
  slope = jax.jit(jax.grad(lambda v: jnp.sum(out(v))))(later)
  np.testing.assert_allclose(slope["b"], np.full(3, 5.0))  # the bias's own gradient alone


@pytest.mark.parametrize("name", CASES)
def test_biases_are_sites_at_every_batch_size_and_are_rounded_to_their_steps(name):
  fn, variables, x = CASES[name]
  names = [list(graph.trace(fn, variables, x[:n]).sites) for n in (1, 2)]
  assert names[0] == names[1]
  biases = [op for op in graph.trace(fn, variables, x).sites.values() if op.kind == "bias"]
  assert len(biases) == 1
  if name == "scanned":
    return
  spec = policy({"output": "float", "*": "w4a8"}, ends=None)
  wide, nothing = scaled(variables, 1000.0), np.zeros_like(x[:1])
  model, *held = started(fn, wide, 1000.0 * x, spec)
  run = jax.jit(lambda q, s, v, x: (fn(v, x), model.apply(q, s, v, x)[0], model.grids(q, s, v, x)))
  exact, found, grids = jax.device_get(run(*held, wide, nothing))
  kernel = next(grid for key, grid in grids.items() if key != "input")
  found, bias = found.astype(np.float64), np.broadcast_to(exact.astype(np.float64), found.shape)
  scale = np.asarray(kernel.scale, np.float64) * np.float64(grids["input"].scale)
  if scale.ndim == 1:  # one for each channel, along the axis of the result that has as many (several axes are its last)
    (axis,) = [i for i, n in enumerate(found.shape) if n == scale.size and i] if name != "split" else [None]
    if axis is None:
      scale = scale.reshape(2, 3).T
    else:
      scale = scale.reshape([-1 if i == axis else 1 for i in range(found.ndim)])
  np.testing.assert_allclose(found, scale * np.round(bias / scale), rtol=1e-5, atol=1e-6 * np.max(scale))


def test_the_gradient_of_one_bias_for_all_channels_is_their_sum():
  fn, variables, x = CASES["one for all"]
  model, qparams, state = started(fn, variables, x, policy({"output": "float", "*": "w8a8"}))
  slope = jax.jit(jax.grad(lambda v: jnp.sum(model.apply(qparams, state, v, x)[0])))(variables)
  np.testing.assert_allclose(slope["b"], [x.shape[0] * 6, 0, 0, 0, 0, 0])
