"""What files take and give: pixels, floats in place of codes, and a network's own numbers."""

import numpy as np
import pytest

from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy import ir, reference
from tests.deploy import nets

HOW = deploy.Preprocessing((0.4,), (0.3,))


@pytest.mark.parametrize("quantized", [False, True])
def test_a_file_takes_pixels_as_they_are(quantized):
  network = nets.lenet(0, quantized=quantized).network(HOW)
  x = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 1), np.uint8)
  expected = reference.run(network, HOW.apply(x))
  taken = ir.check(deploy.with_ends(network, "uint8"))
  np.testing.assert_array_equal(reference.run(taken, x), expected)
  for one in (deploy.litert(), deploy.litert("reference"), deploy.onnx()):
    plain = one.open(one.write(network))
    file = one.open(one.write(taken))
    assert file.input.dtype == "uint8" and file.preprocessing is None
    np.testing.assert_array_equal(file.batches(x, 2), plain.batches(HOW.apply(x), 2))
    with pytest.raises(UserError, match="given inputs of float32; it takes uint8 as it is"):
      file.run(x.astype(np.float32))


def test_a_file_gives_floats_in_place_of_codes():
  network = nets.lenet(0).network(HOW)
  x = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 1), np.uint8)
  codes = reference.run(network, HOW.apply(x))
  for one in (deploy.litert(), deploy.onnx()):
    file = one.open(one.write(deploy.with_ends(network, "uint8", "float32")))
    assert (file.input.dtype, file.output.dtype) == ("uint8", "float32")
    expected = ir.dequantize(one.open(one.write(network)).batches(HOW.apply(x)), network.tensors[network.output])
    np.testing.assert_array_equal(file.run(x), expected)
  assert codes.dtype == np.int8
  assert deploy.with_ends(network) is network


def test_pixels_of_a_network_without_preprocessing_are_refused():
  with pytest.raises(UserError, match="the network has no preprocessing, so it is not known what it makes of pixels"):
    deploy.with_ends(nets.lenet(0).network(), "uint8")
