"""Files written here, run by the real runtime, against the reference interpreter."""

import dataclasses
import sys

import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.deploy import ir, litert, reference
from leanax.deploy.compare import Mismatch, compare, parity
from leanax.deploy.formats.litert import constants
from leanax.deploy.preprocessing import Preprocessing
from leanax.deploy.size import sizes
from tests.deploy import nets

KERNELS = {"xnnpack": "float32", "reference": "litert"}  # the runtime's kernels and the rounding that they have

LAYERS = {
  "dense": lambda maker: (maker.flatten(), maker.dense(9, relu=True)),
  "conv": lambda maker: maker.conv(5, relu=True),
  "conv strided": lambda maker: maker.conv(5, (3, 2), (2, 1)),
  "conv padded": lambda maker: maker.conv(5, padding=((0, 2), (1, 1))),
  "conv dilated": lambda maker: maker.conv(5, dilation=(2, 2), bias=False),
  "grouped": lambda maker: (maker.conv(8), maker.conv(6, groups=2, relu=True)),
  "grouped strided": lambda maker: (
    maker.conv(6),
    maker.conv(9, (3, 2), (2, 1), ((0, 2), (1, 1)), groups=3, bias=False),
  ),
  "grouped dilated": lambda maker: (maker.conv(8), maker.conv(4, dilation=(2, 1), groups=4)),
  "depthwise": lambda maker: maker.conv(3, groups=3),
  "depthwise doubled": lambda maker: maker.conv(6, groups=3, strides=(2, 2), bias=False),
  "max pool": lambda maker: maker.pool(ir.MaxPool),
  "max pool padded": lambda maker: maker.pool(ir.MaxPool, (3, 3), (2, 2), ((1, 1), (1, 1))),
  "average pool": lambda maker: maker.pool(ir.AvgPool, (2, 3), (2, 1)),
  "average pool padded": lambda maker: maker.pool(ir.AvgPool, (3, 3), (1, 1), ((1, 1), (1, 1))),
  "mean": lambda maker: maker.mean(),
  "mean kept": lambda maker: maker.mean(keep_dims=True),
  "relu": lambda maker: maker.relu(),
  "add": lambda maker: maker.add("input", relu=True),
  "add of two": lambda maker: (maker.conv(3), maker.add("input")),
  "flatten": lambda maker: maker.flatten(),
}


def on_powers_of_two(maker):
  """Moves every scale to a power of two, so that exact ties are common."""
  for name, tensor in maker.tensors.items():
    if tensor.grid is not None:
      scale = np.asarray(2.0 ** np.round(np.log2(tensor.scale)), np.float32)
      maker.tensors[name] = tensor._replace(grid=dataclasses.replace(tensor.grid, scale=scale))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_int8_layer_is_bit_exact(kind, kernels):
  for seed in range(4):
    maker = nets.Maker(seed, (6, 7, 3), True)
    LAYERS[kind](maker)
    if seed >= 2:
      on_powers_of_two(maker)
    network, x = maker.network(), maker.images(64)
    codes = litert(kernels=kernels).open(litert().write(network)).codes(x)
    assert np.ptp(codes.astype(int)) > 20
    assert compare(reference.run(network, x, KERNELS[kernels]), codes).count == 0


@pytest.mark.parametrize("kind", LAYERS)
def test_every_float_layer_is_as_near_as_float_allows(kind):
  maker = nets.Maker(1, (6, 7, 3), False)
  LAYERS[kind](maker)
  network, x = maker.network(), maker.images(16)
  for kernels in KERNELS:
    got = litert(kernels=kernels).open(litert().write(network)).run(x)
    np.testing.assert_allclose(got, reference.run(network, x), atol=1e-5)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_hundred_random_dense_stacks_are_bit_exact(kernels):
  rng = np.random.default_rng(0)
  counted = 0
  for seed in range(100):
    widths = tuple(int(w) for w in rng.integers(2, 40, rng.integers(2, 6)))
    maker = nets.mlp(seed, widths)
    network, x = maker.network(), maker.images(100)
    codes = litert(kernels=kernels).open(litert().write(network)).codes(x)
    found = compare(reference.run(network, x, KERNELS[kernels]), codes)
    assert found.count == 0, (seed, widths, found)
    counted += found.total
  assert counted > 100_000


@pytest.mark.parametrize("make", [nets.lenet, nets.resnet])
def test_conv_nets_agree_with_both_kernels(make):
  seen = []
  for seed in range(6):
    maker = make(seed)
    network, x = maker.network(), maker.images(64)
    file = litert().write(network)
    plain = litert(kernels="reference").open(file).codes(x)
    assert parity(network, litert().open(file), x)["reference/runtime"].count == 0
    assert compare(reference.run(network, x, "litert"), plain).count == 0
    across = compare(reference.run(network, x, "float32"), plain)
    assert across.max_steps <= 2
    seen.append(across)
  total = Mismatch(sum(m.count for m in seen), sum(m.total for m in seen), max(m.max_steps for m in seen))
  print(make.__name__, "float32 rounding against the plain kernels:", total)


@pytest.mark.parametrize("make", [nets.mlp, nets.lenet, nets.resnet])
def test_float_files_match_the_numpy_forward(make):
  maker = make(0, quantized=False)
  network, x = maker.network(), maker.images(32)
  model = litert().open(litert().write(network))
  assert (model.input.dtype, model.output.dtype) == ("float32", "float32")
  np.testing.assert_allclose(model.run(x), reference.run(network, x), atol=1e-5)


def test_float_ends_quantize_by_the_same_rule():
  maker = nets.lenet(0)
  network = maker.network()
  x = ir.dequantize(maker.images(64), network.tensors["input"]) + np.float32(0.003)
  inside = litert().open(litert().write(network)).run(x)
  ends = litert().open(litert().write(ir.float_ends(network)))
  assert ends.input.dtype == "float32"
  assert (ends.run(x) == inside).all()


def test_batches_of_any_size_give_the_same():
  maker = nets.resnet(1)
  network, x = maker.network(), maker.images(50)
  model = litert().open(litert().write(network))
  whole = model.run(x)
  assert (whole == model.run(x, batch=7)).all()
  assert (whole == model.run(x, batch=1)).all()
  assert model.run(x[:0]).shape == (0, 10)


@pytest.mark.parametrize("quantized", [True, False])
def test_the_batch_is_open_in_the_file(quantized):
  """For a caller that knows the runtime alone: shape -1, resized to 3 and back to 1."""
  from ai_edge_litert.interpreter import Interpreter

  maker = nets.resnet(2, quantized=quantized)
  network, x = maker.network(), maker.images(3)
  content = litert().write(network)
  assert litert().open(content).codes(x[:0]).shape == (0, 10)
  interpreter = Interpreter(model_content=content)
  (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
  assert given["shape_signature"].tolist() == [-1, 12, 12, 3] and made["shape_signature"].tolist() == [-1, 10]
  for batch in (3, 1):
    interpreter.resize_tensor_input(given["index"], (batch, 12, 12, 3))
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x[:batch])
    interpreter.invoke()
    np.testing.assert_allclose(
      interpreter.get_tensor(made["index"]), reference.run(network, x[:batch]), atol=0 if quantized else 1e-5
    )


def test_preprocessing_travels_in_the_file():
  maker = nets.lenet(2)
  raw = maker.rng.integers(0, 256, (20, 12, 12, 1)).astype(np.uint8)
  how = Preprocessing((0.5,), (0.2,))
  network = maker.network(how)
  model = litert().open(litert().write(network))
  assert model.preprocessing == how
  assert (model.run(raw) == model.run(how.apply(raw))).all()
  assert (model.batches(raw) == reference.run(network, how.apply(raw))).all()
  assert litert().open(litert().write(network._replace(preprocessing=None))).preprocessing is None


def test_pruned_weights_are_integer_zero_in_the_file():
  maker = nets.lenet(0)
  kernels = [layer.kernel for layer in maker.layers if isinstance(layer, ir.Conv2D | ir.Dense)]
  pruned = 0
  for name in kernels:
    data = maker.tensors[name].data
    mask = maker.rng.random(data.shape) < 0.8
    pruned += int(mask.sum())
    data[mask] = 0
  stored = constants(litert().write(maker.network()))
  int8 = [array for array in stored if array.dtype == np.int8 and array.ndim > 1]
  zeros = sum(int((array == 0).sum()) for array in int8)
  assert sum(array.size for array in int8) == sum(maker.tensors[name].data.size for name in kernels)
  assert zeros >= pruned
  first = maker.tensors[kernels[0]].data.transpose(3, 0, 1, 2)
  assert any(array.shape == first.shape and (array == first).all() for array in int8)


def test_overhead_is_small_and_accounted_for():
  maker = nets.mlp(0, (64, 64, 24, 10))
  network = maker.network(Preprocessing())
  file = litert().write(network)
  found = sizes(litert().held(network), file)
  weights = sum(network.tensors[layer.kernel].data.size for layer in network.layers)
  assert weights == 5872
  assert len(file) < 9500
  assert found.total == len(file) == sum(found.layers.values()) + found.rest
  assert list(found.layers) == ["dense0", "dense1", "dense2"]
  assert found.rest < 2500


def test_latency_is_measured():
  found = litert().open(litert().write(nets.lenet(0).network())).latency(runs=20, warm_up=2)
  assert 0 < found.wall_min <= found.wall_median
  assert found.cpu_min > 0
  assert (found.runs, found.threads) == (20, 1)


def test_threads_do_not_change_the_codes():
  maker = nets.resnet(3)
  file, x = litert().write(maker.network()), maker.images(16)
  assert (litert().open(file, threads=2).codes(x) == litert().open(file).codes(x)).all()


def test_hostile_files_are_one_sentence(tmp_path):
  file = litert().write(nets.lenet(0).network(Preprocessing()))
  with pytest.raises(UserError, match="is not a LiteRT"):
    litert().open(b"PK\x03\x04" + bytes(100))
  with pytest.raises(UserError, match="is not a LiteRT"):
    litert().open(b"")
  with pytest.raises(UserError, match="cannot read the LiteRT file .*none.tflite"):
    litert().open(tmp_path / "none.tflite")
  path = tmp_path / "cut.tflite"
  for cut in (9, 40, 200, len(file) // 2, len(file) - 20):
    path.write_bytes(file[:cut])
    with pytest.raises(UserError, match="cut.tflite"):
      litert().open(path)


def test_inputs_of_the_wrong_kind_are_named():
  model = litert().open(litert().write(nets.lenet(0).network()))
  with pytest.raises(UserError, match=r"takes int8 \(N, 12, 12, 1\), not float32 \(2, 12, 12, 1\)"):
    model.codes(np.zeros((2, 12, 12, 1), np.float32))
  with pytest.raises(UserError, match=r"takes inputs of \(N, 12, 12, 1\), not \(2, 11, 12, 1\)"):
    model.run(np.zeros((2, 11, 12, 1), np.float32))
  with pytest.raises(UserError, match="unknown kernels 'fast'"):
    litert(kernels="fast").open(b"")


@pytest.mark.parametrize("kind", ["dense", "conv", "add", "average pool"])
def test_results_of_far_finer_steps_than_their_sums_are_refused(kind):
  """XNNPACK's sums overflow there, and its products refuse the file."""
  maker = nets.Maker(0, (6, 7, 3), True)
  LAYERS[kind](maker)
  network = maker.network()
  litert().check(network)
  made = network.tensors[network.output]
  fine = made._replace(grid=dataclasses.replace(made.grid, scale=np.float32(1e-9)))
  wrong = network._replace(tensors={**network.tensors, made.name: fine})
  for call in (litert().check, litert().write):
    with pytest.raises(UserError, match=rf"layer '\w+' computes in .* makes '{made.name}' in steps of 1e-09"):
      call(wrong)


@pytest.mark.parametrize("kernels", KERNELS)
def test_steps_just_coarse_enough_are_exact(kernels):
  """Of a sum: 250 times finer steps than its operand's run exactly, 260 times finer ones are refused."""
  maker = nets.Maker(0, (6, 7, 3), True)
  LAYERS["add"](maker)
  network, x = maker.network(), maker.images(64)
  made, step = network.tensors[network.output], network.tensors["input"].scale

  def at(ratio):
    fine = made._replace(grid=dataclasses.replace(made.grid, scale=np.float32(step / ratio)))
    return network._replace(tensors={**network.tensors, made.name: fine})

  codes = litert(kernels=kernels).open(litert().write(at(250))).codes(x)
  assert compare(reference.run(at(250), x, KERNELS[kernels]), codes).count == 0
  with pytest.raises(UserError, match="LiteRT's kernels need less than 256 times that"):
    litert().write(at(260))


def test_a_missing_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
  with pytest.raises(UserError, match=r"pip install leanax\[litert\]"):
    litert().write(nets.mlp(0).network())


def test_compare_counts():
  a = np.array([[1, 2, 3], [4, 5, 6]], np.int8)
  b = np.array([[1, 2, 5], [4, 4, 6]], np.int32)
  assert compare(a, b) == Mismatch(2, 6, 2)
  assert compare(np.array([-128], np.int8), np.array([127], np.int8)).max_steps == 255
  with pytest.raises(UserError, match="cannot compare"):
    compare(a, b[:1])
  with pytest.raises(UserError, match="not in float32"):
    compare(a, b.astype(np.float32))
