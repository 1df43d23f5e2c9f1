"""Pairs of activations, products of matrices and convolutions: lifted, by the reference, and in the real runtime."""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy import ir, litert, reference
from quant.quantize import quantize
from tests.deploy.runtimes import runners
from tests.numbers import normal

C = normal(1, (6,))
POSITIONS = normal(2, (1, 4, 6))
NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")


def pairs(v, x):
  """Images (N, H, W, 6) with gates, differences, quotients, and constants of every shape."""
  gate = (x.mean((1, 2)) @ v["square"])[:, None, None, :]
  x = (x / 255.0 - C) / (jnp.abs(C) + 1) + 0.5  # three constants are one factor and one offset
  x = jnp.maximum(x * gate, jnp.minimum(x, gate + 1.0))
  x = (x - gate) / (x * x + 1.0)
  x = (1.0 - x) + normal(3, (4, 5, 6)) * x
  return jnp.maximum(x, 0.1) ** 1.5 + 2.0**x + 1.0 / (jnp.maximum(x, gate) + 5.0)


def dense(v, x):
  """Sequences (N, 4, 6) by kernels on their right and left."""
  y = nn.relu(x @ v["square"] + v["six"]) * 2.0 + POSITIONS
  y = nn.relu(v["left"] @ y + v["left"][:, :1])  # (5, 4) from the left, a bias per row
  y = jnp.einsum("ntc,ts->nsc", y, v["left"])  # back to 4
  y = jnp.einsum("oc,ntc->nto", v["square"], y @ v["square"].T - v["six"])
  return 1.0 - (y * C + POSITIONS)


def heads(v, x):
  """Attention without softmax from sequences (N, 4, 6), and a kernel for each head."""
  q, k, o = (jnp.einsum("ntc,chd->nthd", x, v["heads"]) + bias for bias in (v["two"], 0.5, -v["two"]))
  scores = jnp.einsum("nqhd,nkhd->nhqk", q / jnp.sqrt(3.0), k)
  y = jnp.einsum("nhqk,nkhd->nqhd", scores, jnp.einsum("nthd,hde->nthe", o, v["each"]))
  return jnp.einsum("nthd,hdc->ntc", y, v["out"]) + v["six"]


def matrices(v, x):
  """Products of activations over each of the axes of (N, 4, 6)."""
  within = jnp.einsum("ntc,nsc->nts", x, x + 1.0)
  across = jnp.einsum("ntc,ntd->ncd", x, x)
  return within @ x + x @ across + (jnp.einsum("ntc,ntc->nt", x, x) @ v["four"])[:, :, None]


def sequences(v, x):
  """One-dimensional convolutions of (N, 9, 6), of which none needs a transpose."""
  dn = ("NWC", "WIO", "NWC")
  y = nn.relu(jax.lax.conv_general_dilated(x, v["wide"], (2,), "SAME", dimension_numbers=dn) + v["six"])
  y = jax.lax.conv_general_dilated(y, v["wide"], (1,), [(2, 0)], rhs_dilation=(2,), dimension_numbers=dn)
  y = jax.lax.conv_general_dilated(y, v["wide"][:, :2], (1,), "SAME", dimension_numbers=dn, feature_group_count=3)
  return nn.relu(jax.lax.conv_transpose(y, v["wide"], (3,), "SAME", dimension_numbers=dn) * 0.5 + C)


def channels_first(v, x):
  """Images (N, 3, H, W): one transpose before and one behind all convolutions."""
  for kernel in (v["first"], v["second"]):
    x = nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NCHW) + C[:, None, None])
  return x


def residual_channels_first(v, x):
  """A block of NCHW convolutions with a norm, functions and a sum between them: no transposes inside."""
  conv = lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NCHW)
  x = conv(x, v["first"])
  y = (nn.silu(x) - C[:, None, None]) * jnp.abs(C)[:, None, None] + 1.0
  return nn.relu(conv(y, v["second"]) + x)


class Upward(nn.Module):
  """Transposed convolutions of every padding and stride."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.ConvTranspose(3, (3, 3), (2, 2))(x))
    x = nn.ConvTranspose(4, (4, 4), (2, 2), padding=((1, 2), (0, 1)), use_bias=False)(x)
    x = nn.ConvTranspose(2, (3, 2), (2, 3), padding="VALID", transpose_kernel=True)(x)
    x = nn.ConvTranspose(3, (2, 2), (3, 3), kernel_dilation=(1, 2))(x)
    return nn.ConvTranspose(2, (1, 4), (1, 2))(x)


class Ahead(nn.Module):
  """Batch norms in front of convolutions, behind a sum, and behind a mean."""

  @nn.compact
  def __call__(self, x):
    norm = lambda x: nn.BatchNorm(use_running_average=True)(x)
    x = nn.Conv(6, (1, 1), use_bias=False)(x)
    x = norm(x + nn.Conv(6, (3, 3), use_bias=False)(nn.relu(norm(x))))
    return nn.DenseGeneral((2, 3))(norm(x.mean((1, 2))))


def linen(module, shape):
  variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))
  leaves, tree = jax.tree.flatten(variables)
  values = [jnp.abs(normal(i, leaf.shape)) / np.sqrt(np.prod(leaf.shape[:-1]) + 1) for i, leaf in enumerate(leaves)]
  return module.apply, jax.tree.unflatten(tree, values), normal(0, (3, *shape))


V = {
  "square": normal(4, (6, 6)) / 3,
  "six": normal(5, (6,)),
  "left": normal(6, (5, 4)) / 2,
  "heads": normal(7, (6, 2, 3)) / 2,
  "two": normal(8, (2, 3)),
  "one": normal(16, (2, 3)),
  "each": normal(9, (2, 3, 3)) / 2,
  "out": normal(15, (2, 3, 6)) / 2,
  "four": normal(10, (4, 4)),
  "wide": normal(11, (3, 6, 6)) / 4,
  "first": normal(12, (6, 3, 3, 3)) / 4,
  "second": normal(13, (6, 6, 3, 3)) / 4,
}
NETS = {
  "pairs": (lambda: (pairs, V, normal(0, (3, 4, 5, 6))), None),
  "dense": (
    lambda: (dense, V, normal(0, (3, 4, 6))),
    "Dense Binary Binary Transpose Dense Dense Transpose Dense Dense Binary",
  ),
  "heads": (lambda: (heads, V, normal(0, (3, 4, 6))), None),
  "matrices": (lambda: (matrices, V, normal(0, (3, 4, 6))), None),
  "sequences": (lambda: (sequences, V, normal(0, (3, 9, 6))), "Reshape Conv2D Conv2D Conv2D TransposedConv2D Reshape"),
  "channels first": (lambda: (channels_first, V, normal(0, (3, 3, 5, 4))), "Transpose Conv2D Conv2D Transpose"),
  "residual channels first": (
    lambda: (residual_channels_first, V, normal(0, (3, 3, 5, 4))),
    "Transpose Conv2D Activation Binary Binary Conv2D Add Transpose",
  ),
  "upward": (lambda: linen(Upward(), (2, 3, 2)), "TransposedConv2D " * 5),
  "ahead": (
    lambda: linen(Ahead(), (4, 4, 3)),
    "Conv2D Binary Binary Relu Conv2D Add Binary Binary Mean Binary Binary Dense Reshape",
  ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", NETS)
def test_nets_reach_the_runtime(name):
  make, layers = NETS[name]
  fn, variables, x = make()
  network = deploy.lift(fn, variables, x)
  if layers is not None:
    assert [type(layer).__name__ for layer in network.layers] == layers.split()
  expected = np.asarray(jax.jit(fn)(variables, x))
  near = {"rtol": 0, "atol": 1e-5 * np.abs(expected).max()}
  np.testing.assert_allclose(reference.run(network, np.asarray(x)), expected, **near)
  for runner in runners(network):
    for batch in (1, 3):
      np.testing.assert_allclose(runner.run(np.asarray(x[:batch])), expected[:batch], **near)


def on_integers(v, x):
  """Sequences, dense layers of every rank and transposed convolutions, with ReLUs between them."""
  dn = ("NWC", "WIO", "NWC")
  y = nn.relu(jax.lax.conv_general_dilated(x, v["wide"], (2,), "SAME", dimension_numbers=dn) + v["six"])
  y = nn.relu(jax.lax.conv_transpose(y, v["wide"], (3,), "SAME", dimension_numbers=dn) + v["six"])
  y = nn.relu(jnp.einsum("ntc,chd->nthd", y, v["heads"]) + v["two"])
  return jax.lax.conv_transpose(y, v["up"], (2, 3), "VALID", dimension_numbers=NHWC)


def channels_first_on_integers(v, x):
  for kernel in (v["first"], v["second"]):
    x = nn.relu(
      jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NCHW) + v["six"][:, None, None]
    )
  return x


def rounded_before(v, x):
  """Constants that are no variables behind sums that are rounded before them."""
  y = nn.relu(jnp.einsum("ntc,cd->ntd", x, v["square"]) + C)
  return (y @ v["square"] + v["six"]) / 3.0


def attention(v, x):
  """Attention without softmax: products of two activations and a factor stay float."""
  q, k, o = (jnp.einsum("ntc,chd->nthd", x, v["heads"]) + bias for bias in (v["two"], v["one"], -v["two"]))
  y = jnp.einsum("nhqk,nkhd->nqhd", jnp.einsum("nqhd,nkhd->nhqk", q / jnp.sqrt(3.0), k), o)
  return jnp.einsum("nthd,hdc->ntc", y, v["out"]) + v["six"]


INTEGERS = {on_integers: (9, 6), channels_first_on_integers: (3, 5, 4), rounded_before: (4, 6), attention: (4, 6)}
ISLANDS = (rounded_before, attention)  # with layers that stay float


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fn", INTEGERS)
def test_codes_are_those_of_the_simulation(fn):
  variables, x = {**V, "up": normal(14, (3, 4, 3, 4)) / 4}, normal(0, (8, *INTEGERS[fn]))
  model = quantize(fn, "w8a8")
  qparams, state = model.init(variables, x)
  grids = model.grids(qparams, state, variables, x)
  network = deploy.lift(fn, variables, x, grids, islands=fn in ISLANDS)
  simulated = np.asarray(jax.jit(model.apply)(qparams, state, variables, x)[0])
  found = deploy.parity(network, litert().open(litert().write(network)), np.asarray(x), simulated)
  assert found["reference/runtime"].count == 0
  assert found["simulation/runtime"].count <= 0.01 * found["simulation/runtime"].total


def test_a_kernel_for_each_head_has_no_integers():
  fn = lambda v, x: jnp.einsum("nhd,hde->nhe", nn.relu(jnp.einsum("nc,chd->nhd", x, v["heads"])), v["each"])
  x = normal(0, (4, 6))
  model = quantize(fn, "w8a8")
  with pytest.raises(UserError, match=r"cannot lift 'dot_general' at test_products.py:\d+: no format has integers"):
    deploy.lift(fn, V, x, model.grids(*model.init(V, x), V, x))


@pytest.mark.parametrize("seed", range(4))
def test_products_of_codes_are_those_of_the_reference(seed):
  rng = np.random.default_rng(seed)
  shapes = {"a": (None, 16, 16, 6), "b": (None, (16, 1)[seed % 2], (16, 1)[seed % 2], 6), "y": (None, 16, 16, 6)}
  grids = {name: ir.grid(rng.uniform(0.01, 0.5), int(rng.integers(-128, 128))) for name in ("a", "b")}
  if seed == 3:
    grids = {"a": ir.grid(0.125, 5), "b": ir.grid(1 / 256, -128)}  # a gate, and products on ties
  made = np.float32(2.0**-4 if seed == 3 else 60 * grids["a"].scale * grids["b"].scale)
  grids["y"] = ir.grid(made, int(rng.integers(-60, 60)))
  tensors = {name: ir.Tensor(name, shape, "int8", grids[name]) for name, shape in shapes.items()}
  network = ir.Network((ir.Binary("m", ("a", "b"), "y", "mul"),), tensors, {"a": "a", "b": "b"}, {"y": "y"})
  x = tuple(rng.integers(-128, 128, (8, *shapes[name][1:])).astype(np.int8) for name in ("a", "b"))
  a, b = (tensors[k].scale.astype(np.float64) * (one.astype(int) - tensors[k].zero_point) for k, one in zip("ab", x))
  exact = np.clip(a * b / tensors["y"].scale + tensors["y"].zero_point, -128, 127)
  files = [(litert(), "float32"), (litert(kernels="reference"), "litert"), (deploy.onnx(), "onnxruntime")]
  for one, mode in files[: 2 + bool(importlib.util.find_spec("onnxruntime"))]:
    expected = reference.run(network, x, mode)
    np.testing.assert_array_equal(one.open(one.write(network)).batches(x), expected, err_msg=mode)
    assert np.abs(expected - exact).max() <= 0.51


@pytest.mark.parametrize("seed", range(3))
def test_matrices_of_codes_are_multiplied_as_by_the_reference(seed):
  rng, turned, size = np.random.default_rng(seed), seed != 1, 3 + 20 * seed
  shapes = {"a": (None, 2, 17, size), "b": (None, 2, 9, size) if turned else (None, 2, size, 9), "y": (None, 2, 17, 9)}
  grids = {"a": ir.grid(0.03, int(rng.integers(-128, 128))), "b": ir.grid(0.05, 0)}
  x = tuple(rng.integers(-128, 128, (8, *shapes[name][1:])).astype(np.int8) for name in ("a", "b"))
  steps = [one.astype(np.int64) - grids[name].zero_point for name, one in zip("ab", x, strict=True)]
  total = steps[0] @ (steps[1].swapaxes(-1, -2) if turned else steps[1])
  grids["y"] = ir.grid(np.ptp(total) * 0.03 * 0.05 / 300, 7)
  tensors = {name: ir.Tensor(name, shape, "int8", grids[name]) for name, shape in shapes.items()}
  network = ir.Network((ir.MatMul("m", ("a", "b"), "y", turned),), tensors, {"a": "a", "b": "b"}, {"y": "y"})
  values = [tensors[name].scale.astype(np.float64) for name in "aby"]
  exact = np.clip(total * values[0] * values[1] / values[2] + 7, -128, 127)
  files = [(litert(), "float32"), (litert(kernels="reference"), "litert"), (deploy.onnx(), "onnxruntime")]
  for one, mode in files[: 2 + bool(importlib.util.find_spec("onnxruntime"))]:
    expected = reference.run(network, x, mode)
    np.testing.assert_array_equal(one.open(one.write(network)).batches(x), expected, err_msg=mode)
    assert np.abs(expected - exact).max() <= 0.51


@pytest.mark.parametrize("grid", [ir.grid(1 / 256, -128), ir.grid(0.03, 77)], ids=["shares", "any"])
def test_each_pair_of_codes_is_multiplied_as_by_the_reference(grid):
  codes = np.arange(-128, 128, dtype=np.int8)
  x = np.broadcast_to(codes[:, None], (2, 256, 1)), np.broadcast_to(codes, (2, 1, 256))
  shapes = {"a": (None, 256, 1), "b": (None, 1, 256), "y": (None, 256, 256)}
  grids = {"a": grid, "b": ir.grid(0.05, 0), "y": ir.grid(grid.scale * 5.0, -9)}
  tensors = {name: ir.Tensor(name, shape, "int8", grids[name]) for name, shape in shapes.items()}
  network = ir.Network((ir.MatMul("m", ("a", "b"), "y"),), tensors, {"a": "a", "b": "b"}, {"y": "y"})
  files = [(litert(), "float32"), (litert(kernels="reference"), "litert"), (deploy.onnx(), "onnxruntime")]
  for one, mode in files[: 2 + bool(importlib.util.find_spec("onnxruntime"))]:
    np.testing.assert_array_equal(one.open(one.write(network)).batches(x), reference.run(network, x, mode), mode)
