"""Weights of .tflite files in their types: packed codes, and constants of float networks, in the real runtime."""

import itertools

import numpy as np
import pytest

from leanax.deploy import ir, litert, reference
from leanax.deploy.compare import compare
from leanax.deploy.formats.litert import constants
from tests.deploy import nets

KERNELS = {"xnnpack": "float32", "reference": "litert"}  # the runtime's kernels and the rounding that they have


def on_few_bits(maker, bits, narrow=True):
  """Moves kernels to grids of a few bits, all codes of which occur."""
  for layer in maker.layers:
    if isinstance(layer, ir.Conv2D | ir.Dense):
      kernel, highest = maker.tensors[layer.kernel], 2 ** (bits - 1) - 1
      lowest = -highest if narrow else -highest - 1
      data = np.clip(np.rint(kernel.data * (highest / 127)), lowest, highest).astype(np.int8)
      data.flat[: highest - lowest + 1] = np.arange(lowest, highest + 1)[: data.size]
      grid = ir.grid(kernel.scale * np.float32(127 / highest), bits=bits, narrow=narrow, axis=kernel.axis)
      maker.tensors[layer.kernel] = kernel._replace(data=data, grid=grid)
      if layer.bias:
        bias = maker.tensors[layer.bias]
        grid = ir.bias_grid(maker.tensors[layer.inputs[0]], maker.tensors[layer.kernel])
        maker.tensors[layer.bias] = bias._replace(grid=grid, data=(bias.data * highest // 127).astype(np.int32))
  return maker


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_packed_dense_weights_are_bit_exact(bits, kernels):
  for seed, narrow in enumerate((True, False)):
    maker = on_few_bits(nets.mlp(seed, (22, 15, 12, 5)), bits, narrow)  # the second layer's stay int8
    network, x = maker.network(), maker.images(67)
    file = litert(kernels=kernels).open(litert().write(network))
    expected = reference.run(network, x, KERNELS[kernels])
    assert np.ptp(expected.astype(int)) > 20
    assert [one.type[:4] for one in litert().held(network).values()] == ["int4", "int8", "int4"]
    assert compare(expected, file.codes(x)).count == compare(expected, file.batches(x, 3)).count == 0


def test_packed_products_at_each_pixel_have_the_codes_of_convolutions():
  maker = nets.Maker(0, (5, 4, 8), True)
  maker.conv(10, (1, 1), padding=((0, 0), (0, 0)), relu=True)
  maker.conv(5, (1, 1), padding=((0, 0), (0, 0)), bias=False)
  maker.conv(6, (1, 1), strides=(2, 2), padding=((0, 0), (0, 0)))
  maker.conv(6, (3, 3))
  network, x = on_few_bits(maker, 4).network(), maker.images(33)
  file = litert().write(network)
  assert [one.type for one in litert().held(network).values()] == ["int4", "int4", "int8 of 4 bits", "int8 of 4 bits"]
  assert compare(reference.run(network, x), litert().open(file).codes(x)).count == 0
  first = network._replace(layers=network.layers[:1], outputs={"output": network.layers[0].output})
  plain = litert(kernels="reference").open(litert().write(first)).codes(x)
  assert compare(reference.run(first, x, "litert"), plain).max_steps <= 1  # dense layers round once there


def test_packed_weights_take_half_a_byte():
  widths = (34, 32, 11)
  byte, half = (on_few_bits(nets.mlp(1, widths), bits) for bits in (5, 4))
  sizes = [a * b for a, b in itertools.pairwise(widths)]
  files = [litert().write(maker.network()) for maker in (byte, half)]
  saved = sum(sizes) // 2
  assert abs(len(files[0]) - len(files[1]) - saved) < 64  # alignment
  held = litert().held(half.network())
  for layer, size in zip(half.layers, sizes, strict=True):
    channels = half.tensors[layer.kernel].shape[1]
    assert held[layer.name] == ("int4", size // 2 + 4 * channels + (8 * channels if layer.bias else 0))
  stored = {array.shape: array for array in constants(files[1])}
  for layer in half.layers:
    kernel = half.tensors[layer.kernel].data
    np.testing.assert_array_equal(stored[kernel.T.shape], kernel.T)
