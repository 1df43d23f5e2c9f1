"""Our .tflite files against those of Google's litert-converter, of the same functions and grids, in one runtime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import converter
from leanax import deploy
from leanax.deploy import ir
from tests.deploy import nets

pytestmark = pytest.mark.peers

FORMAT = deploy.litert()


def one_by_one(content, x):
  """Outputs of a file that has a batch of one."""
  runner = FORMAT.open(content)
  return np.concatenate([runner.run(row[None]) for row in x])


def cnn(x):
  rng = np.random.default_rng(0)
  first, last = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 2, 4), (4, 5)))
  x = lax.conv_general_dilated(x, first, (2, 2), "SAME", dimension_numbers=converter.IMAGE)
  return jax.nn.softmax(jax.nn.relu(x).mean((1, 2)) @ last)


def gated(x):
  rng = np.random.default_rng(1)
  kernel = rng.normal(size=(6, 6)).astype(np.float32)
  h = jax.nn.hard_swish(x @ kernel)
  return jnp.concatenate([h * jax.nn.sigmoid(h), jax.nn.gelu(h, approximate=True)], -1)


@pytest.mark.parametrize(("fn", "shape"), [(cnn, (8, 8, 2)), (gated, (6,))])
def test_float_files_compute_the_same(fn, shape):
  x = np.random.default_rng(2).normal(size=(5, *shape)).astype(np.float32)
  ours = FORMAT.write(deploy.lift(lambda variables, x: fn(x), {}, x[:1]))
  theirs = converter.litert_converter(fn, x[:1])
  np.testing.assert_allclose(FORMAT.open(ours).run(x), one_by_one(theirs, x), atol=2e-6)
  assert len(ours) < 1.5 * len(theirs)


def residual(seed, pooled=None):
  """Strided, padded and depthwise convolutions, a sum, a pool, and a mean or none."""
  maker = nets.Maker(seed, (12, 12, 3), quantized=True)
  maker.conv(8, (5, 5), (2, 2), ((2, 2), (2, 2)), relu=True)
  skip = maker.last
  maker.conv(8, relu=True)
  maker.conv(8)
  maker.add(skip, relu=True)
  maker.pool(ir.MaxPool, (3, 3), (2, 2), ((1, 1), (1, 1)))
  maker.conv(8, groups=8, relu=True)
  if pooled is ir.AvgPool:
    maker.pool(ir.AvgPool)
  if pooled is ir.Mean:
    maker.mean()
  else:
    maker.flatten()
  maker.dense(10)
  return maker


@pytest.mark.parametrize("make", [nets.mlp, nets.lenet, residual])
@pytest.mark.parametrize("seed", range(3))
def test_int8_files_of_one_set_of_grids_have_the_same_codes(make, seed):
  assert count(make(seed).network(), seed) == 0


def count(network, seed):
  """How many codes differ."""
  given = network.tensors[network.input]
  codes = np.random.default_rng(seed).integers(-128, 128, (24, *given.shape[1:])).astype(np.int8)
  x, made = ir.dequantize(codes, given), network.tensors[network.output]
  theirs = converter.litert_converter(converter.fake_quantized(network), x[:1], strict=True)
  found = ir.quantize(one_by_one(theirs, x), made)
  return deploy.compare(found, FORMAT.open(FORMAT.write(network)).codes(codes)).count


def test_means_have_the_same_codes():
  assert count(residual(0, ir.Mean).network(), 0) == 0


@pytest.mark.xfail(strict=True, reason="it pools on the grid of the input and rounds a second time; ours rounds once")
def test_average_pools_have_the_same_codes():
  assert count(residual(0, ir.AvgPool).network(), 0) == 0


def test_their_int8_products_are_refused():
  """A product of int8 arrays with int32 sums, which is what integers in jax are, has no kernel there."""
  kernel = np.ones((4, 3), np.int8)

  def fn(x):
    return lax.dot_general(x, kernel, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)

  with pytest.raises(Exception, match=r"(?i)fail|error|legal"):
    converter.litert_converter(fn, jnp.ones((1, 4), jnp.int8))
