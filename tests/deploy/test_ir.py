import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.preprocessing import Preprocessing
from tests.deploy import nets


def test_prints_one_line_per_layer():
  text = str(nets.lenet(0).network())
  assert len(text.splitlines()) == 8
  assert "Conv2D relu conv0: input -> conv0:out int8[Nx12x12x6]" in text
  assert "60 parameters" in text


@pytest.mark.parametrize(
  ("size", "window", "stride", "dilation"), [(8, 3, 1, 1), (8, 3, 2, 1), (9, 2, 2, 1), (7, 3, 1, 2)]
)
def test_same_padding_keeps_the_grid_of_strides(size, window, stride, dilation):
  padding = ir.same_padding(size, window, stride, dilation)
  assert ir.window_out(size, window, stride, padding, dilation) == -(-size // stride)
  assert 0 <= padding[1] - padding[0] <= 1


def test_round_trip_of_codes():
  grid = ir.Tensor("x", (None, 256), "int8", ir.grid(0.037, -128))
  codes = np.arange(-128, 128).astype(np.int8)
  assert (ir.quantize(ir.dequantize(codes, grid), grid) == codes).all()
  assert ir.dequantize(np.array([-128], np.int8), grid).item() == 0.0


def test_preprocessing():
  done = Preprocessing((0.5,), (0.25,), 1 / 255).apply(np.array([0, 255], np.uint8))
  assert done.dtype == np.float32
  assert done.tolist() == [-2.0, 2.0]


def spoil(name, **change):
  network = nets.mlp(0).network()
  tensors = dict(network.tensors)
  tensors[name] = tensors[name]._replace(**change)
  return network._replace(tensors=tensors)


def test_unsound_networks_are_refused_by_name():
  network = nets.mlp(0).network()
  with pytest.raises(UserError, match=r"layer 'dense1' reads 'dense0:out', which no layer before it makes"):
    ir.check(network._replace(layers=network.layers[1:]))
  with pytest.raises(UserError, match=r"makes 'dense2:out', which was made before"):
    ir.check(network._replace(layers=(*network.layers, network.layers[-1])))
  with pytest.raises(UserError, match="'nothing' is made by no layer"):
    ir.check(network._replace(outputs={"output": "nothing"}))
  with pytest.raises(UserError, match="'dense0/kernel' has zero point 3; weights must be symmetric"):
    ir.check(spoil("dense0/kernel", grid=ir.grid(0.1, 3)))
  with pytest.raises(UserError, match="'dense0/kernel' hold the code -128"):
    ir.check(spoil("dense0/kernel", data=np.full((20, 16), -128, np.int8)))
  with pytest.raises(UserError, match="only quantize layers may change the type"):
    ir.check(spoil("dense0:out", dtype="float32"))


def test_pool_keeps_its_grid():
  network = nets.lenet(0).network()
  pooled = network.layers[1].output
  tensors = {
    **network.tensors,
    pooled: network.tensors[pooled]._replace(grid=ir.grid(network.tensors[pooled].scale, 5)),
  }
  with pytest.raises(UserError, match="must have one grid"):
    ir.check(network._replace(tensors=tensors))


def test_float_ends():
  network = ir.check(ir.float_ends(nets.mlp(0).network()))
  assert network.tensors[network.input].dtype == network.tensors[network.output].dtype == "float32"
  plain = nets.mlp(0, quantized=False).network()
  assert ir.float_ends(plain) is plain
